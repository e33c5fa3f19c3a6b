"""The console: the windows, the function and the trouble, live, in a browser on this machine."""
