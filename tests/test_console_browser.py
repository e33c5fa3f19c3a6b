"""The console's page in a real browser: what a person sees, does and cannot be harmed by."""

import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import browser as browsers
from tests.browser import VIEWS, Watched, shoot
from tests.console_sources import MadeUp, item, refused
from tests.ports import held_port
from windlass.console.demo_source import DemoSource
from windlass.console.server import Console
from windlass.local.demo import STREAM, Demo, Options, local_endpoint
from windlass.local.taxi import trips

pytestmark = pytest.mark.heavy

SCREENSHOTS = Path(__file__).parent.parent / "build" / "screenshots"
SCRIPT = "<script>window.harmed=1</script><img src=x onerror=window.harmed=1>"
PHONE = {"width": 390, "height": 780}


@pytest.fixture(scope="module")
def chromium():
    with browsers.chromium(browsers.needed()) as browser:
        yield browser


@pytest.fixture
def page(chromium):
    """A page that must not complain, nor talk to anyone but its own server."""
    opened = chromium.new_page(viewport={"width": 1280, "height": 860}, color_scheme="light")
    opened.set_default_timeout(12_000)
    watched = Watched(opened)
    yield opened
    opened.close()
    assert watched.complaints == []
    assert len(watched.hosts) == 1
    assert next(iter(watched.hosts)).startswith("127.0.0.1:")


class Breakable(Demo):
    """A demo whose function fails as long as `broken` says so."""

    broken = ""

    def _handler(self):
        works = super()._handler()

        def handler(event, context):
            if self.broken:
                raise RuntimeError(self.broken)
            return works(event, context)

        return handler


@pytest.fixture(scope="module")
def running():
    """A demo with its console; nothing is in the stream yet."""
    with local_endpoint() as endpoint_url:
        demo = Breakable(trips, Options(every_s=2, for_s=3.0, shards=2, rate=150, unclean=0.1), endpoint_url)
        demo.start()
        with Console(DemoSource(demo)) as console:
            yield demo, console
        demo.stop()


@contextmanager
def shown(source, page):
    """The console about a source, for as long as the page looks at it."""
    with Console(source) as console:
        yield console
        page.goto("about:blank")


@contextmanager
def three_rejected(page):
    """The view of trouble, with three records in quarantine; the quarantine."""
    source = MadeUp()
    source.quarantine.put("shardId-000000000000", [refused(n) for n in range(1, 4)])
    with shown(source, page) as console:
        page.goto(f"{console.url}#trouble")
        page.locator(".note", has_text="3 in quarantine").wait_for()
        yield source.quarantine


def put(demo, data: bytes, key: str = "test") -> None:
    demo.clients["kinesis"].put_record(StreamName=STREAM, PartitionKey=key, Data=data)


# --- a run ---------------------------------------------------------------------------------------------------------


def test_a_run_is_seen_from_its_first_record_to_its_settled_windows(running, page):
    demo, console = running
    page.goto(f"{console.url}#windows")
    page.wait_for_selector(".open-row[data-shard]")
    assert page.locator(".items .row").count() == 0
    assert "no open window" in page.locator(".open-windows").inner_text()

    producer = threading.Thread(target=demo.produce_until, args=(threading.Event(),))
    producer.start()
    page.locator(".open-row", has_text="folded").first.wait_for()
    producer.join()
    assert demo.poller.settle(timeout_s=30)

    items = demo.items()
    page.wait_for_function("count => document.querySelectorAll('.items .row').length >= count", arg=min(len(items), 8))
    stored = items[0]
    row = page.locator(".items .row", has_text=stored["windowStart"][11:19])
    for attribute in ("vendorId", "passenger", "trips"):  # the last shard's part may be a moment behind
        row = row.filter(has=page.locator(f"span:text-is('{int(stored[attribute]):,}')"))
    row.first.wait_for()
    assert page.locator(".stage canvas").count() == 1
    row.first.click()
    assert (
        f"{sum(name.startswith('applied#') for name in stored)} shard" in page.locator(".item-detail h4").inner_text()
    )
    page.fill("#key-filter", "1")
    page.wait_for_function(
        "() => [...document.querySelectorAll('.items .cell-key')].every(each => each.innerText === '1')"
    )


def test_a_bad_record_is_found_under_its_reason_and_harms_nobody(running, page):
    demo, console = running
    put(demo, SCRIPT.encode())
    page.goto(f"{console.url}#trouble")
    page.fill("#rejected-search", "window.harmed")
    page.locator(".note", has_text="1 found").wait_for()  # of the search alone: no reason is chosen yet
    page.locator("[data-reason=not_json]").click()
    page.locator("[data-reason=not_json][aria-pressed=true]").wait_for()
    page.locator(".list .row", has_text="not_json").first.click()

    page.wait_for_function("text => document.querySelector('#record-text')?.textContent === text", arg=SCRIPT)
    assert "the text is not JSON" in page.locator(".detail").inner_text()
    assert page.evaluate("window.harmed") is None
    assert page.locator("main img, main script").count() == 0


def test_a_record_is_put_by_the_button_and_followed_to_its_end(running, page):
    _, console = running
    page.goto(f"{console.url}#pipeline")
    page.click("[data-example='missing field']")
    page.click("#put")
    page.locator(".trace", has_text="In quarantine: missing_field").wait_for()

    page.click("[data-example=clean]")
    page.click("#put")
    page.locator(".trace", has_text="In the table").wait_for()
    told = page.locator(".trace").inner_text()
    assert "vendorId 1" in told
    assert "passenger" in told


def test_a_failing_function_shows_its_error_and_which_shard_it_blocks(running, page):
    demo, console = running
    demo.broken = f"the table is on fire {SCRIPT}"
    try:
        put(demo, b'{"vendorId": 1, "passengerCount": 1}')
        page.goto(f"{console.url}#logs")
        page.get_by_role("button", name="errors").click()
        page.wait_for_selector(".list-space:not(:has(.row:not(.failed))) .row.failed")
        page.locator(".row.failed").first.click()
        assert "RuntimeError" in page.locator(".detail .error").inner_text()
        log = page.locator(".detail .log").inner_text()
        assert "Traceback" in log
        assert f"RuntimeError: the table is on fire {SCRIPT}" in log
        page.keyboard.press("4")
        page.locator(".blocked-row", has_text="is blocked").wait_for()
        assert "the table is on fire" in page.locator(".blocked-row").first.inner_text()
    finally:
        demo.broken = ""
    assert demo.poller.settle(timeout_s=30)
    page.wait_for_selector(".blocked", state="hidden")
    assert page.evaluate("window.harmed") is None


def test_the_graphs_show_what_the_run_measured(running, page):
    demo, console = running
    put(demo, b'{"vendorId": 1, "passengerCount": 1}')
    assert demo.poller.settle(timeout_s=30)
    read = sum(shard.counters.polled for shard in demo.poller.status())
    page.goto(f"{console.url}#monitor")
    page.wait_for_function("() => document.querySelectorAll('.charts canvas').length === 9")
    page.locator(".stat", has_text="received").locator(f"b:text-is('{read:,}')").wait_for()
    before = page.locator(".stat").all_inner_texts()
    page.get_by_role("button", name="15 min").click()
    page.wait_for_timeout(300)

    assert len(before) == 9
    assert page.get_by_role("button", name="15 min").get_attribute("aria-pressed") == "true"


def test_every_view_is_taken_in_both_themes(running, chromium):
    demo, console = running
    for number in range(4):
        put(demo, b"{", str(number))
        put(demo, b'{"vendorId": 1, "passengerCount": 1}', str(number))
    assert demo.poller.settle(timeout_s=30)

    pictures = shoot(chromium, console.url, SCREENSHOTS, pause_ms=120)

    assert len(pictures) == 2 * len(VIEWS)
    light, dark = (SCREENSHOTS / f"windows-{theme}.png" for theme in ("light", "dark"))
    assert light.read_bytes() != dark.read_bytes()


# --- whoever wrote the names, the records and the logs ---------------------------------------------------------------


def test_no_text_from_anywhere_becomes_markup(page):
    source = MadeUp(word=SCRIPT)
    source.quarantine.put("shardId-000000000000", [refused(1, detail=SCRIPT, data=SCRIPT.encode())])
    with shown(source, page) as console:
        for view in ("windows", "logs", "trouble", "pipeline", "monitor"):
            page.goto(f"{console.url}#{view}")
            if view == "monitor":  # nothing there but numbers
                continue
            page.wait_for_function("() => document.querySelector('main').textContent.includes('window.harmed')")
            for row in page.locator(".list .row").all():
                row.click()
        assert page.evaluate("window.harmed") is None
        assert page.locator("main img, main script, header img, .detail img").count() == 0


# --- size ------------------------------------------------------------------------------------------------------------


def test_ten_thousand_keys_and_a_day_of_windows_do_not_slow_it(page):
    items = [item(f"key-{key:05}", ago, passenger=key) for key in range(10_000) for ago in range(8)]
    items += [item("all-day", ago, passenger=ago) for ago in range(2_880)]
    with shown(MadeUp(items=items), page) as console:
        console.desk.items.refresh()
        page.goto(f"{console.url}#windows")
        page.locator(".note", has_text="82,880 items").wait_for()
        assert page.locator(".items .row").count() < 60

        page.get_by_role("button", name="24 h").click()
        page.evaluate("document.querySelector('.items .list').scrollTop = 1e9")
        page.locator(".items .row:not(.unread)", has_text="all-day").first.wait_for()
        page.fill("#key-filter", "key-0777")
        page.locator(".note", has_text="80 found").wait_for()
        page.fill("#key-filter", "all-day")
        page.locator(".note", has_text="2,880 found").wait_for()
        most, slowest_ms = page.evaluate(
            """async () => {
              const list = document.querySelector('.items .list');
              let most = 0, slowest = 0, last = performance.now();
              for (let step = 0; step < 40; step += 1) {
                list.scrollTop = step * 2000;
                await new Promise(requestAnimationFrame);
                most = Math.max(most, document.querySelectorAll('.items .row').length);
                slowest = Math.max(slowest, performance.now() - last);
                last = performance.now();
              }
              return [most, slowest];
            }"""
        )
        print(f"slowest frame while scrolling: {slowest_ms:.0f} ms")
        assert most < 60  # what is drawn does not grow with what there is: that keeps it quick


# --- how it is used ------------------------------------------------------------------------------------------------


def test_it_fits_a_phone(chromium):
    source = MadeUp()
    source.quarantine.put("shardId-000000000000", [refused(1)])
    with Console(source) as console:
        page = chromium.new_page(viewport=PHONE, color_scheme="dark")
        for view in VIEWS:
            page.goto(f"{console.url}#{view}")
            page.wait_for_selector("#live[data-kind=live]")
            page.wait_for_timeout(200)
            assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], view
        page.close()


def test_nothing_moves_under_who_is_reading(page):
    with three_rejected(page) as quarantine:
        page.locator(".list .row").nth(1).click()
        before = page.locator(".list .row").all_inner_texts()
        quarantine.put("shardId-000000000000", [refused(9)])
        page.locator(".note", has_text="1 more since").wait_for()
        assert page.locator(".list .row").all_inner_texts() == before
        page.keyboard.press("Escape")
        page.locator(".note", has_text="4 in quarantine").wait_for()
        assert page.locator(".list .row").count() == 4


def held_back(page, marked):
    """From now on the page's requests whose address has that mark wait; the function answers them."""
    waiting = []
    page.route(lambda url: marked in url, lambda route: waiting.append(route))  # playwright marks what it calls

    def let_go():
        for route in waiting:
            route.continue_()
        page.unroute_all()
        return len(waiting)

    return let_go


def test_a_row_in_sight_can_be_chosen_while_another_question_is_under_way(page):
    with three_rejected(page):
        let_go = held_back(page, "q=sought")
        with page.expect_request(lambda request: "q=sought" in request.url):
            page.fill("#rejected-search", "sought")

        page.locator(".list .row").first.click()

        page.locator("#record-text").wait_for()
        assert let_go() == 1
        page.locator(".note", has_text="0 found").wait_for()
        assert page.locator(".list .row").count() == 0
        assert page.locator("#record-text").count() == 1


def test_an_answer_to_an_earlier_question_is_not_told(page):
    with three_rejected(page):
        let_go = held_back(page, "q=earlier")
        with page.expect_request(lambda request: "q=earlier" in request.url):
            page.fill("#rejected-search", "earlier")
        page.fill("#rejected-search", "shardId")
        page.locator(".note", has_text="3 found").wait_for()

        with page.expect_request_finished(lambda request: "q=earlier" in request.url):
            assert let_go() == 1
        page.evaluate("fetch('/api/pipeline').then(answer => answer.text())")  # answered after it

        assert page.locator(".note", has_text="3 found").count() == 1
        assert page.locator(".list .row").count() == 3


def test_what_was_asked_before_somebody_reads_does_not_move_the_list_either(page):
    with three_rejected(page) as quarantine:
        before = page.locator(".list .row").all_inner_texts()
        let_go = held_back(page, "limit=100")
        with page.expect_request(lambda request: "limit=100" in request.url):
            quarantine.put("shardId-000000000000", [refused(9)])

        page.locator(".list .row").nth(1).click()
        page.locator("#record-text").wait_for()
        let_go()

        page.locator(".note", has_text="1 more since").wait_for()
        assert page.locator(".list .row").all_inner_texts() == before


def test_it_waits_for_something_to_show(page):
    source = MadeUp()
    source.gone = "no function here reads a Kinesis stream yet"
    with shown(source, page) as console:
        page.goto(console.url)
        page.locator(".waiting", has_text=source.gone).wait_for()
        source.gone = ""
        page.wait_for_selector("#live[data-kind=live]")


def test_it_is_used_by_keyboard_alone(page):
    source = MadeUp()
    with shown(source, page) as console:
        page.goto(console.url)
        page.wait_for_selector("#tab-windows[aria-current]")
        page.keyboard.press("3")
        page.wait_for_selector("#tab-logs[aria-current]")
        page.locator(".list .row:not(.unread)").first.wait_for()
        page.keyboard.press("j")
        page.locator(".detail", has_text="r-1").wait_for()
        page.keyboard.press("Escape")
        page.keyboard.press("/")
        page.keyboard.type("zzz")
        page.locator(".empty", has_text="No calls to show.").wait_for()
        page.keyboard.press("Escape")
        page.keyboard.press("t")
        assert page.evaluate("document.documentElement.dataset.theme") == "dark"
        page.keyboard.press("u")
        assert page.locator("#zone").inner_text() == "local time"
        page.keyboard.press("?")
        page.wait_for_selector("dialog[open]")
        page.keyboard.press("Escape")
        page.reload()
        assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_a_console_that_ends_is_said_and_found_again(chromium):
    source = MadeUp()
    page = chromium.new_page()
    with held_port() as port:  # that nobody else listens on in between
        with Console(source, port=port) as console:
            page.goto(console.url)
            page.wait_for_selector("#live[data-kind=live]")
        page.wait_for_selector("#live[data-kind=lost]")
        with Console(source, port=port):
            page.wait_for_selector("#live[data-kind=live]")
            page.close()
