"""`make screenshots`: a demo of a minute, every view of its console in both themes, and the README's picture."""

import shutil
import sys
import threading
import time
from pathlib import Path

from tests.browser import CHROMIUM, chromium, shoot
from windlass.console.demo_source import DemoSource
from windlass.console.server import Console
from windlass.local.demo import Demo, Options, run
from windlass.local.taxi import trips

FOLDER = Path("build/screenshots")
README_PICTURE = Path("docs/console.png")


def main() -> int:
    if CHROMIUM is None:
        print("make screenshots needs Chromium: apt-get install chromium", file=sys.stderr)
        return 2
    stop = threading.Event()

    def watch(demo: Demo, done: threading.Event) -> None:
        with Console(DemoSource(demo)) as console, chromium(CHROMIUM) as browser:
            console.desk.looked()
            time.sleep(45)
            for picture in shoot(browser, console.url, FOLDER):
                print(picture)
            stop.set()
            done.wait()

    run(trips, Options(every_s=5, for_s=None, rate=600), watch=watch, stop=stop)
    README_PICTURE.parent.mkdir(exist_ok=True)
    shutil.copyfile(FOLDER / "windows-light.png", README_PICTURE)
    print(README_PICTURE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
