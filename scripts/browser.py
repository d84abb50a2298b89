"""What the scripts share that look at pages in a real browser: wide and narrow, light and dark, without a network."""
import os
import sys

WIDTHS = ((1440, 900), (390, 844))


def skip(reason):
    print(f"SKIPPED, nothing was checked: {reason}", file=sys.stderr)
    sys.exit(0)


def check(condition, what):
    if not condition:
        sys.exit(f"FAILED: {what}")


def fits(page, what):
    """Nothing is wider than the screen."""
    check(page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"], f"{what}: nothing sticks out to the right")


def every_screen(path, look):
    """Opens the page at `path` on every screen and calls `look(page, name, narrow)`, where name is such as `390-dark`.

    Then the console must have been silent and nothing may have been asked of the network.
    """
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        skip("playwright is not installed")
    with sync_playwright() as playwright:
        options = {"args": ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]}
        if os.environ.get("CHROMIUM"):
            options["executable_path"] = os.environ["CHROMIUM"]
        try:
            browser = playwright.chromium.launch(**options)
        except Error as error:
            skip(str(error).splitlines()[0])
        for width, height in WIDTHS:
            for scheme in ("light", "dark"):
                print(f"{path.name}: {width} pixels, {scheme}")
                context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
                page = context.new_page()
                wrong, asked = [], []
                page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
                page.on("pageerror", lambda error: wrong.append(str(error)))
                page.on("request", lambda request: asked.append(request.url))
                page.goto(path.resolve().as_uri())
                name = f"{width}-{scheme}"
                look(page, name, width < 600)
                check(not wrong, f"the console says {wrong}")
                outside = [url for url in asked if not url.startswith(("file:", "data:", "blob:"))]
                check(not outside, f"the page asks the network for {outside}")
                context.close()
        browser.close()


def picture(page, folder, name):
    """A screenshot of the whole page, where a folder for it was named."""
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=folder / f"{name}.png", full_page=True)
