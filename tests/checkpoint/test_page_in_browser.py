"""What a real browser makes of the page of `nmsolve report`."""

import io
import itertools
import os
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest

from nmsolve.checkpoint.page import page
from tests.checkpoint.page_reports import (
    CORNERS,
    HOSTILE,
    MIXED_REPORT,
    SMALL,
    hostile_page,
    report,
    tensor,
)
from tests.core.families import rare

# What a page does in answer to a click or a key is not done when that call returns: it may take any
# time where all cores are busy. So tests wait for the state that must come, by `expect`, before
# they read others that come with it. Nothing below sleeps: an upper bound this large costs time
# only where a test fails.
WAIT = 30_000  # milliseconds
LAUNCH = 120_000  # the first start reads the whole browser from disk


def shown(text):
    """A name as the page must show it: what HTML or UTF-8 cannot hold is replaced."""
    return re.sub("[\x00-\x08\x0e-\x1f\x7f-\x9f\ud800-\udfff]", "\ufffd", text)


@pytest.fixture(scope="module")
def browser():
    def without(why):
        (pytest.fail if os.environ.get("CI") else pytest.skip)(why)

    program = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if program is None:
        without("no Chromium or Chrome is installed")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        without("playwright is not installed: pip install 'nmsolve[dev]'")
    with sync_playwright() as tools:
        running = tools.chromium.launch(
            executable_path=program, args=["--no-sandbox"], timeout=LAUNCH
        )
        yield running
        running.close()


@pytest.fixture
def expect(browser):
    """Assertions that are tried again until they hold or `WAIT` is over; imported late, since
    `browser` skips without it.
    """
    from playwright.sync_api import expect

    expect.set_options(timeout=WAIT)
    return expect


FRAMES = (
    "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done())))"
)


def settle(opened):
    """Let the page do what it does of itself by its next frames: what must not happen has no state
    to wait for.
    """
    opened.evaluate(FRAMES)


@pytest.fixture
def visit(browser, tmp_path):
    """Open a page's text; at the end there must have been no error in it, and no request but the
    one for itself.
    """
    contexts, scripted, errors, requests, numbers = [], [], [], [], itertools.count()

    def open_(text, width=1280, height=900, **options):
        path = tmp_path / f"{next(numbers)}.html"
        path.write_text(text, encoding="utf-8")
        contexts.append(browser.new_context(viewport={"width": width, "height": height}, **options))
        opened = contexts[-1].new_page()
        opened.set_default_timeout(WAIT)
        opened.on("console", lambda message: errors.append(message.text))
        opened.on("pageerror", lambda error: errors.append(str(error)))
        opened.on("request", lambda request: requests.append(request.url))
        opened.goto(path.as_uri())
        if options.get("java_script_enabled", True):
            scripted.append(opened)
        return opened

    yield open_
    for opened in scripted:
        settle(opened)  # a late error counts too
    for context in contexts:
        context.close()
    assert errors == []
    assert requests == [(tmp_path / f"{i}.html").as_uri() for i in range(len(contexts))]


@pytest.fixture(scope="module")
def mixed():
    return page(MIXED_REPORT, CORNERS, title="net", notes=["Times are of one machine."])


@pytest.mark.parametrize("case", SMALL)
def test_reports_of_every_size_open(visit, case):
    opened = visit(page(SMALL[case], {}, title=case), width=320)
    assert opened.inner_text("h1") == case
    assert opened.locator("tbody tr").count() == len(SMALL[case].pruned)
    assert opened.evaluate("document.documentElement.scrollWidth") <= 320


def test_hostile_text_does_nothing(visit, expect):
    opened = visit(hostile_page())
    for row in opened.locator("tbody tr").all():
        row.hover()
        expect(row.and_(opened.locator(":hover"))).to_have_count(1)
    opened.locator("th.c-name button").click()
    expect(opened.locator("th.c-name")).to_have_attribute("aria-sort", "ascending")
    opened.locator("details summary").first.click()
    expect(opened.locator("details .names").first).to_be_visible()
    settle(opened)
    assert opened.evaluate("window.owned") is None
    names = [opened.locator(f"#t{i + 1} .c-name").text_content() for i in range(len(HOSTILE))]
    assert names == [shown(text) for text in HOSTILE]
    assert opened.title() == f"{shown(HOSTILE[3])}: sparsity report"
    assert sorted(opened.locator("h3").all_text_contents()) == sorted(
        [*map(shown, HOSTILE), "Files left behind"]
    )


PRUNED = MIXED_REPORT.pruned
RANKS = ["1:4", "2:4", "2:4T", "4:8T"]
KEYS = {
    "#": lambda i: i,
    "Tensor": lambda i: [
        int(part) if part.isdigit() else part for part in re.split(r"(\d+)", PRUNED[i].name)
    ],
    "File": lambda i: PRUNED[i].file,
    "Pattern": lambda i: RANKS.index(str(PRUNED[i].pattern)),
    "Shape": lambda i: PRUNED[i].weights,
    "Dtype": lambda i: PRUNED[i].dtype,
    "Density": lambda i: PRUNED[i].kept and PRUNED[i].density,
    "Kept |W|": lambda i: PRUNED[i].share,
    "Gap": lambda i: PRUNED[i].gap,
    "Status": lambda i: PRUNED[i].status,
    "Time": lambda i: PRUNED[i].seconds,
}


def arranged(order, key, reverse):
    """Stable, the unknown last."""
    known = [
        i
        for i in order
        if key(i) is not None and key(i) not in (float("inf"),) and key(i) == key(i)
    ]
    return sorted(known, key=key, reverse=reverse) + [i for i in order if i not in known]


def rows(opened):
    return [
        int(name[1:]) - 1
        for name in opened.evaluate("[...document.querySelectorAll('tbody tr')].map(row => row.id)")
    ]


SORTED = (
    "[...document.querySelectorAll('th[aria-sort]')].map(head => [head.textContent, head.ariaSort])"
)


@pytest.mark.parametrize(
    ("by", "width"),
    [("click", 375), ("Enter", 1280), pytest.param("Space", 375, marks=pytest.mark.long)],
)
def test_every_heading_sorts(visit, expect, mixed, by, width):
    opened = visit(mixed, width=width)
    assert opened.locator("th button").all_inner_texts() == list(KEYS)
    order = rows(opened)
    for label, key in KEYS.items():
        button = opened.get_by_role("button", name=label, exact=True)
        heading = opened.locator("th").filter(has=button)
        for again in (False, True):
            reverse = again != (
                label == "#"
            )  # the page begins in the order of #, so that one is reversed first
            direction = (
                "descending" if reverse else "ascending"
            )  # never what it was before, so waiting for it is waiting
            button.click() if by == "click" else button.press(by)
            expect(heading).to_have_attribute("aria-sort", direction)
            order = arranged(order, key, reverse)
            assert rows(opened) == order, (label, reverse)
            assert opened.evaluate(SORTED) == [[label, direction]]


def test_headings_and_masks_are_reached_by_tab(visit, expect, mixed):
    opened = visit(mixed)
    opened.focus("#filter")
    expect(opened.locator("#filter")).to_be_focused()
    headings = [opened.get_by_role("button", name=label, exact=True) for label in KEYS]
    for stop in (*headings, opened.locator(".thumb").first):
        opened.keyboard.press("Tab")
        expect(stop).to_be_focused()
        expect(stop).to_have_css("outline-style", "solid")


def test_the_filter_leaves_names_that_contain_it(visit, expect, mixed):
    opened = visit(mixed)
    opened.fill("#filter", "LAYERS.2")
    expect(opened.locator("#found")).to_have_text(f"3 of {len(PRUNED)}")
    visible = opened.locator("tbody tr:visible")
    assert visible.locator(".c-name").all_text_contents() == [
        "layers.2.q",
        "layers.2.k",
        "layers.2.v",
    ]
    link = opened.locator("figcaption a").first
    row = opened.locator(link.get_attribute("href"))
    for again in (
        False,
        True,
    ):  # the second time the hash is the row's already, and does not change
        opened.fill("#filter", "layers.2")
        expect(row).to_be_hidden()
        # to a row that is filtered out: it is the target at once, and shown when the page hears of
        # it
        link.click()
        expect(row.and_(opened.locator("tbody tr:target")), f"again: {again}").to_be_visible()
        expect(row).to_be_in_viewport()
        expect(opened.locator("#filter")).to_have_value("")
        expect(visible).to_have_count(len(PRUNED))


IN_STROKE = """(path, [rows,
columns]) => [...Array(rows).keys()].map(y => [...Array(columns).keys()].map(
    x => path.isPointInStroke(new DOMPoint(x + 0.5, y))))"""


def pixels(png, rows, columns):
    """A screenshot's cells at their centres, True = nearer to black than to white."""
    from matplotlib.image import imread

    image = imread(io.BytesIO(png))[..., :3].mean(axis=-1)
    y, x = (
        ((np.arange(k) + 0.5) * size / k).astype(int)
        for k, size in zip((rows, columns), image.shape, strict=True)
    )
    return image[np.ix_(y, x)] < 0.5


def test_thumbnails_show_the_masks(visit, mixed):
    opened = visit(mixed)
    for number, t in enumerate(PRUNED, 1):
        if t.name not in CORNERS:
            assert opened.locator(f"#t{number} svg.cells").count() == 0
            continue
        mask = CORNERS[t.name]
        drawn = opened.locator(f"#m{number}").evaluate(IN_STROKE, mask.shape)
        np.testing.assert_array_equal(drawn, mask)
        small = opened.locator(f"#t{number} .thumb svg")
        box = small.bounding_box()
        assert (box["height"], box["width"]) == tuple(
            side * 64 // max(mask.shape) for side in mask.shape
        )
        np.testing.assert_array_equal(pixels(small.screenshot(), *mask.shape), mask)


@pytest.mark.parametrize("width", [320, 1280])
def test_masks_are_enlarged_by_tap_and_by_key(visit, expect, mixed, width):
    opened = visit(mixed, width=width, has_touch=True)
    large = opened.locator("#z1")
    expect(large).to_be_hidden()
    opened.locator("#t1 .thumb").tap()
    expect(large).to_be_visible()
    box = large.bounding_box()
    assert 0 <= box["x"] <= box["x"] + box["width"] <= width
    assert large.locator("svg").bounding_box()["width"] > 200
    np.testing.assert_array_equal(
        pixels(large.locator("svg").screenshot(), 32, 32), CORNERS[PRUNED[0].name]
    )
    assert (
        f"The top-left 32 × 32 of {PRUNED[0].shape[0]}×{PRUNED[0].shape[1]}" in large.inner_text()
    )
    opened.keyboard.press("Escape")
    expect(large).to_be_hidden()
    opened.locator("#t1 .thumb").press("Enter")
    expect(large).to_be_visible()
    large.get_by_role("button", name="Close").press("Enter")
    expect(large).to_be_hidden()


NARROW = """() => [...document.querySelectorAll('tbody tr')].map(row => [...row.cells].map(cell => {
    const box = cell.getBoundingClientRect(), label = getComputedStyle(cell, '::before');
    return {label: label.content.slice(1, -1), display: label.display, given: cell.dataset.label,
    text: cell.innerText.trim(),
            mask: !!cell.querySelector('svg'), left: box.left, right: box.right, height: box.height,
            clipped: cell.scrollWidth > cell.clientWidth}; }))"""


@pytest.mark.parametrize("width", [320, *rare(375), 820])
@pytest.mark.parametrize("text", [*rare(None), "hostile"])
def test_narrow_screens_show_cards_without_scrolling_sideways(visit, mixed, width, text):
    opened = visit(hostile_page() if text else mixed, width=width)
    opened.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert opened.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    for cell in itertools.chain(*opened.evaluate(NARROW)):
        assert cell["label"] == cell["given"] != ""
        assert cell["display"] == "block"
        assert cell["text"] or cell["mask"]
        assert 0 <= cell["left"] < cell["right"] <= width
        assert cell["height"] > 20
        assert not cell["clipped"], cell


@pytest.mark.parametrize("width", [1280, 1210, 1199])
def test_wide_screens_do_not_scroll_sideways_either(visit, width):
    opened = visit(hostile_page(), width=width)
    assert opened.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert opened.locator("thead th.c-name").evaluate("cell => getComputedStyle(cell).display") == (
        "table-cell" if width > 1200 else "block"
    )


CONTRASTS = """() => {
    const rgb = text => text.match(/[\\d.]+/g).map(Number);
    const light = ([r, g, b]) => [r, g,
    b].map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const ground = node => { for (let e = node; e; e = e.parentElement) {
        const c = rgb(getComputedStyle(e).backgroundColor); if (c.length === 3 ||
        c[3] === 1) return c; } return [255, 0, 255]; };
    const contrast = (node, colour) => { const [a, b] = [light(rgb(colour)),
    light(ground(node))].sort((x, y) => y - x);
        return (a + 0.05) / (b + 0.05); };
    const texts = [...document.querySelectorAll('body *')].filter(e => e.checkVisibility() &&
    !e.closest('script, title') &&
        [...e.childNodes].some(c => c.nodeType === 3 && c.data.trim()));
    const marks = [...document.querySelectorAll('.definitions path')];
    return {texts: texts.map(e => [contrast(e,
    getComputedStyle(e)[e.closest('svg') ? 'fill' : 'color']), e.textContent]),
            labels: [...document.querySelectorAll('td')].map(e => [contrast(e, getComputedStyle(e,
            '::before').color), '']),
            marks: marks.map(e => [contrast(document.body, getComputedStyle(e).fill), e.id]),
            masks: [...document.querySelectorAll('svg.cells')].map(e => [contrast(e,
            getComputedStyle(e).stroke), '']),
            ground: getComputedStyle(document.body).backgroundColor}; }"""


@pytest.mark.parametrize(
    ("width", "script"),
    [(375, True), pytest.param(1280, True, marks=pytest.mark.long), (1280, False)],
)
def test_text_is_legible_by_day_and_by_night(visit, expect, mixed, width, script):
    grounds = {}
    for scheme in ("light", "dark"):
        opened = visit(mixed, width=width, color_scheme=scheme, java_script_enabled=script)
        opened.locator("details summary").first.click()
        expect(opened.locator("details .names").first).to_be_visible()
        opened.locator(".thumb").first.click()
        expect(opened.locator("#z1")).to_be_visible()  # what is not shown is not measured
        found = opened.evaluate(CONTRASTS)
        grounds[scheme] = sum(map(int, re.findall(r"\d+", found["ground"])))
        assert len(found["texts"]) > 100
        assert len(found["marks"]) == len(RANKS)
        for kind, least in {"texts": 4.5, "labels": 4.5, "marks": 3, "masks": 4.5}.items():
            assert min(found[kind])[0] >= least, (scheme, kind, min(found[kind]))
    assert grounds["light"] > 700
    assert grounds["dark"] < 100


def test_without_javascript_everything_is_there(visit, expect, mixed):
    opened = visit(mixed, java_script_enabled=False)
    assert rows(opened) == list(range(len(PRUNED)))
    assert opened.locator("tbody tr:visible").count() == len(PRUNED)
    assert not opened.locator(
        "#filter"
    ).is_visible()  # it would do nothing, and so would the headings
    assert opened.locator("th button:enabled").count() == 0
    opened.locator(".thumb").first.click()
    expect(opened.locator("#z1")).to_be_visible()
    opened.keyboard.press("Escape")
    expect(opened.locator("#z1")).to_be_hidden()
    opened.get_by_text("Names").first.click()
    expect(opened.locator("details .names").first).to_be_visible()


@pytest.mark.parametrize("width", [320, 1280])
@pytest.mark.parametrize("count", [1, *rare(5), 401])
def test_the_chart_puts_marks_where_they_belong(visit, count, width):
    shares = np.random.default_rng(count).uniform(0.5, 0.9, count).tolist()
    tensors = [
        tensor(f"t{i}", "2:4T" if i % 2 else "2:4", share=share) for i, share in enumerate(shares)
    ]
    opened = visit(page(report(*tensors), {}, title=""), width=width)
    boxes = (
        "(selector) => [...document.querySelectorAll(selector)].map(e => "
        "e.getBoundingClientRect().toJSON())"
    )
    plot, marks = opened.evaluate(boxes, "svg.chart")[0], opened.evaluate(boxes, ".chart use")
    x, y = (
        np.array([mark[low] + mark[size] / 2 for mark in marks])
        for low, size in (("x", "width"), ("y", "height"))
    )
    assert len(marks) == count
    np.testing.assert_allclose(
        x, plot["x"] + plot["width"] * (np.arange(count) + 0.5) / count, atol=1
    )
    assert plot["y"] - 1 <= y.min() <= y.max() <= plot["bottom"] + 1
    if count > 1:
        slope, start = np.polyfit(shares, y, 1)
        np.testing.assert_allclose(y, slope * np.array(shares) + start, atol=1)
        assert slope < 0
        ticks = {
            float(text[:-1]) / 100: i
            for i, text in enumerate(opened.locator(".chart text").all_text_contents())
            if "%" in text
        }
        texts = opened.evaluate(boxes, ".chart text")
        heights = [texts[i]["y"] + texts[i]["height"] / 2 for i in ticks.values()]
        np.testing.assert_allclose(heights, slope * np.array(list(ticks)) + start, atol=3)
    texts = opened.evaluate(boxes, ".chart text")
    for a, b in itertools.combinations(texts, 2):
        apart = (
            a["right"] < b["x"]
            or b["right"] < a["x"]
            or a["bottom"] <= b["y"]
            or b["bottom"] <= a["y"]
        )
        assert apart, (a, b)
    assert all(text["x"] >= 0 and text["right"] <= width for text in texts)
    assert opened.locator("figure .legend").count() == (count > 1)
    label = opened.get_by_role("img", name=re.compile(r"^Kept \|W\|, tensor by tensor"))
    assert label.count() == 1


def test_print_has_no_controls_and_opens_what_is_closed(visit, expect, mixed):
    opened = visit(mixed, width=700, color_scheme="dark")
    opened.emulate_media(media="print")
    expect(opened.locator("body")).to_have_css("background-color", "rgb(255, 255, 255)")
    expect(opened.locator("#filter")).to_be_hidden()
    expect(opened.locator("summary").first).to_be_hidden()
    expect(opened.locator("details .names").first).to_be_visible()
    assert opened.locator("details .names").first.bounding_box()["height"] > 10


def test_numbers_on_the_page_are_the_reports(visit):
    tensors = (
        tensor("a", share=0.9, gap=1e-3, status="feasible", seconds=1.5),
        tensor("b", None, (8192,)),
    )
    whole = report(*tensors, tensor("c", "1:4", share=0.5, seconds=75.0))
    opened = visit(page(replace(whole, left_behind=("x.bin",)), {}, title="net"))
    tiles = [
        tile.inner_text().replace("\u202f", " ").split("\n")
        for tile in opened.locator(".tiles > div").all()
    ]
    assert tiles == [
        ["Weights", "24.6 K", "24,576"],
        ["Tensors pruned", "2", "of 3, with 66.7 % of the weights"],
        ["Density of the whole", "0.5833", "dense tensors included"],
        ["Kept |W|", "70.00 %", "of the sum of magnitudes where pruned"],
        ["Certified gap", "6.4e-04", "1 of 2 proven optimal; the largest of a tensor 1.0e-03"],
        ["Time", "1 min 17 s", "summed over tensors"],
    ]
    group = opened.locator(".reasons > li")
    assert (
        group.locator("p").inner_text().replace("\u202f", " ")
        == "1 tensor, 8,192 weights, 33.33 % of all"
    )
    bar, rect = (
        group.locator(selector).bounding_box()["width"] for selector in (".bar", ".bar rect")
    )
    assert abs(rect / bar - 1 / 3) < 0.01
    assert opened.get_by_text("x.bin").is_visible()
