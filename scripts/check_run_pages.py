"""Looks at the pages of `sysgen-train` in a real browser, wide and narrow, light and dark: what `check --html` writes, and a
run's report.html.

    pip install playwright            # and a Chromium: CHROMIUM=/usr/bin/chromium, or `playwright install chromium`
    sysgen-train check --config configs/quickstart.toml --html /tmp/check.html
    python3 scripts/check_run_pages.py /tmp/check.html runs/quickstart/report.html [--pictures FOLDER]

Fails with the first thing that is wrong. Without playwright or a browser it says so and checks nothing.
"""

import argparse
import pathlib

from browser import check, every_screen, fits, picture

# The least contrast of text against what is behind it (WCAG 2, AA).
CONTRAST = 4.5
# Every text's contrast in the page, by colours as the browser computes them: the least one, and whose it is.
LEAST_CONTRAST = """() => {
  const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
  const light = colour => {
    const [r, g, b] = numbers(colour).slice(0, 3).map(x => x / 255).map(x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = element => {
    for (let at = element; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (numbers(colour).length === 3 || numbers(colour)[3] > 0) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  let least = [Infinity, ""];
  for (const element of document.body.querySelectorAll("*")) {
    const own = [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
    if (!own || !element.getClientRects().length) continue;
    const style = getComputedStyle(element);
    const ink = element.ownerSVGElement ? style.fill : style.color;
    const [one, other] = [light(ink), light(behind(element))].sort();
    const contrast = (other + 0.05) / (one + 0.05);
    if (contrast < least[0]) least = [contrast, `<${element.localName} class="${element.getAttribute("class") || ""}"> ${element.textContent.trim().slice(0, 40)}`];
  }
  return least;
}"""


def text_is_readable(page):
    contrast, whose = page.evaluate(LEAST_CONTRAST)
    check(contrast >= CONTRAST, f"{whose} has a contrast of {contrast:.1f}")
    small = page.evaluate(
        "() => [...document.body.querySelectorAll('*')].filter(e => e.getClientRects().length && !e.ownerSVGElement"
        " && parseFloat(getComputedStyle(e).fontSize) < 12).map(e => e.textContent.trim().slice(0, 40))"
    )
    check(not small, f"text below 12 pixels: {small[:3]}")


def look_at_check(page, narrow):
    gates = page.locator("table.gates tbody tr")
    check(gates.count() >= 10, "every gate has a row")
    words = set(page.locator("table.gates tbody td:nth-child(2)").all_inner_texts())
    check(words <= {"passed", "note", "refused"}, f"verdicts are words: {words}")
    check(page.locator("table.gates thead").is_visible() != narrow, "column names are there where there are columns")
    check(page.locator(".card mark").count() > 0, "what is learnt is marked")
    marked = page.locator(".card mark").first
    ground = "element => getComputedStyle(element).backgroundColor"
    check(marked.evaluate(ground) != page.locator(".card").first.evaluate(ground), "a mark differs from what is not marked")


def look_at_report(page, narrow):
    curves = page.locator(".curves svg")
    check(curves.count() >= 4, "loss, learning rate, gradient norm and speed are drawn")
    for number in range(curves.count()):
        curve = curves.nth(number)
        check(curve.locator("polyline").count() > 0, "a drawing has a curve")
        box = curve.bounding_box()
        check(box["width"] > 250, "a curve is wide enough to be read")
        outside = curve.evaluate(
            "svg => [...svg.querySelectorAll('text')].filter(text => { const box = text.getBBox();"
            " return box.x < 0 || box.x + box.width > svg.viewBox.baseVal.width + 1 }).map(text => text.textContent)"
        )
        check(not outside, f"words beside a drawing: {outside}")
        pixels = curve.evaluate("svg => parseFloat(getComputedStyle(svg.querySelector('text')).fontSize) * svg.clientWidth / svg.viewBox.baseVal.width")
        check(pixels >= 9, f"words of a drawing are {pixels:.1f} pixels high")
    side_by_side = curves.nth(0).bounding_box()["y"] == curves.nth(1).bounding_box()["y"]
    check(side_by_side != narrow, "drawings stand beside each other where there is room, else below each other")
    facts = dict(zip(page.locator("dt").all_inner_texts(), page.locator("dd").all_inner_texts()))
    check(int(facts["steps"]) > 0, "the number of steps is said")
    check("output_dir" in page.locator("pre").last.inner_text(), "the settings are there")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("check", type=pathlib.Path, help="what `sysgen-train check --html` wrote")
    parser.add_argument("report", type=pathlib.Path, help="report.html of a run")
    parser.add_argument("--pictures", type=pathlib.Path, help="a folder for screenshots")
    arguments = parser.parse_args()
    for path, kind, look_at in (
        (arguments.check, "check", look_at_check),
        (arguments.report, "report", look_at_report),
    ):

        def look(page, name, narrow):
            picture(page, arguments.pictures, f"{kind}-{name}")
            fits(page, kind)
            look_at(page, narrow)
            text_is_readable(page)

        every_screen(path, look)
    print("the pages work")


main()
