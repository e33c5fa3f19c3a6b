// Before the first paint: the theme that was chosen here, else the system's.
(function () {
  let chosen = null;
  try { chosen = localStorage.getItem("windlass.theme"); } catch { /* storage may be off */ }
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = chosen || (dark ? "dark" : "light");
})();
