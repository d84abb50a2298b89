"""Uses the page of `sysgen-data report` in a real browser, as a person would, wide and narrow, light and dark.

    pip install playwright            # and a Chromium: CHROMIUM=/usr/bin/chromium, or `playwright install chromium`
    sysgen-data report runs/quickstart -o /tmp/report.html
    python3 scripts/check_report.py /tmp/report.html [--pictures FOLDER]

Fails with the first thing that is wrong. Without playwright or a browser it says so and checks nothing.
"""

import argparse
import pathlib
import time

from browser import check, every_screen, fits, picture

# A page of 50,000 rows must stay usable: the longest a person waits for a search, in seconds.
PATIENCE = 20


def rows_shown(page):
    text = page.inner_text("#count")
    return int(text.split(" of ")[0].replace(",", "")), int(text.split(" of ")[1].split(" ")[0].replace(",", ""))


def settled(page):
    page.wait_for_function("() => !document.getElementById('list').hasAttribute('aria-busy')", timeout=PATIENCE * 1000)


def use(page, narrow):
    """The page in the hands of a person; every step states what must then be seen."""
    everything, total = rows_shown(page)
    check(everything == total > 0, "the page opens with every row")
    check(page.locator(".entry").count() < 60, "only the rows in sight are in the document")
    fits(page, "the list")

    tag = page.eval_on_selector("#tag", "select => select.options[1].textContent")
    page.select_option("#tag", label=tag)
    settled(page)
    with_tag, _ = rows_shown(page)
    page.select_option("#label", "kept")
    settled(page)
    kept, _ = rows_shown(page)
    check(kept <= with_tag <= total, "a tag and a label leave fewer rows")
    page.click("#clear")
    settled(page)
    check(rows_shown(page)[0] == total, "clear brings every row back")

    sources = page.eval_on_selector_all("#source option", "options => options.length")
    of_sources = 0
    for number in range(1, sources):
        page.select_option("#source", index=number)
        settled(page)
        of_sources += rows_shown(page)[0]
    check(of_sources == total, "every row has one source")
    page.click("#clear")
    settled(page)

    page.click("#search")
    preview = page.locator(".entry .text").first.inner_text()
    word = max(preview.replace("…", "").split()[:6], key=len)
    started = time.monotonic()
    page.fill("#search", word)
    settled(page)
    found, _ = rows_shown(page)
    print(f"  {found} of {total} rows hold {word!r}, found in {time.monotonic() - started:.1f} s")
    check(0 < found, "a word of the first question is found")
    page.fill("#search", "no row says xyzzy plugh")
    settled(page)
    check(rows_shown(page)[0] == 0 and page.locator(".empty").is_visible(), "a search without finds says so")
    check(page.locator(".detail-head").count() == 0, "a search without finds shows no row")
    page.click("#clear")
    settled(page)

    for order in page.eval_on_selector_all("#order option", "options => options.map((option) => option.value)"):
        page.select_option("#order", order)
        settled(page)
        check(rows_shown(page)[0] == total, f"order {order} keeps every row")
    page.click("#clear")
    settled(page)

    if narrow:
        page.click(".entry >> nth=1")
        page.wait_for_selector(".detail-head .back")
        check(not page.locator("#list").is_visible(), "a row takes the place of the list")
        fits(page, "a row")
        page.click(".detail-head .back")
        check(page.locator("#list").is_visible(), "the list comes back")
    else:
        first = page.locator(".detail-head h3").inner_text()
        page.focus("#list")
        page.keyboard.press("ArrowDown")
        page.wait_for_function("first => document.querySelector('.detail-head h3').textContent !== first", arg=first)
        page.keyboard.press("End")
        last = f"entry-{total - 1}"
        page.wait_for_function("last => document.getElementById('list').getAttribute('aria-activedescendant') === last", arg=last)
        page.keyboard.press("Home")
        page.wait_for_function("first => document.querySelector('.detail-head h3').textContent === first", arg=first)
        page.keyboard.press("/")
        check(page.evaluate("document.activeElement.id") == "search", "/ goes to the search")
        page.keyboard.press("Escape")
        check(page.evaluate("document.activeElement.id") == "list", "Escape goes back to the list")
        sides = "() => ['original', 'answer'].map(side => document.querySelector('.prose.' + side).textContent)"
        marked = page.evaluate(sides)
        boxes = page.locator(".switch input")
        boxes.first.uncheck()
        page.wait_for_function("() => !document.querySelector('.detail ins, .detail del')")
        check(page.evaluate(sides) == marked, "marks take nothing from the texts")
        page.locator(".switch input").first.check()
        page.keyboard.press("Escape")

    before = page.evaluate("document.documentElement.dataset.theme")
    page.click("#theme")
    check(page.evaluate("document.documentElement.dataset.theme") != before, "the button changes the theme")
    page.click("#theme")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=pathlib.Path)
    parser.add_argument("--pictures", type=pathlib.Path, help="a folder for screenshots")
    arguments = parser.parse_args()

    def look(page, name, narrow):
        page.wait_for_selector(".detail-head", state="attached", timeout=PATIENCE * 1000)
        settled(page)
        picture(page, arguments.pictures, name)
        use(page, narrow)

    every_screen(arguments.page, look)
    print("the page works")


main()
