"""The page of explore.py in headless Chromium, with real clicks and keys, and without errors."""

import json

import chromium
import numpy as np
import pytest
from helpers import random_features, random_pairs, write_txt
from recommend_helpers import N_ITEMS, N_USERS, load, train, write_names

import explore

pytestmark = pytest.mark.skipif(chromium.PROGRAM is None, reason="needs chromium: apt install chromium")

HOSTILE = '</script><img src=x onerror="window.stolen = 1">\'`'
WITHOUT_IMAGE = 7  # an item
RESULT, CHOSEN = ".results button", ".results button[aria-current]"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """(path of a page of two runs with names and thumbnails, run folder of the first)."""
    image = pytest.importorskip("PIL.Image")
    root = tmp_path_factory.mktemp("explore")
    folder = root / "data" / "small"
    write_txt(folder, **random_pairs(0, N_USERS, N_ITEMS, 6))
    for m, size in (("text", 12), ("image", 20)):
        features = random_features(N_ITEMS, size, seed=size)
        features[WITHOUT_IMAGE] *= m != "image"
        np.save(folder / f"{m}_feat.npy", features)
    write_names(folder)
    titles = [{"item": i, "title": HOSTILE if i == 5 else f"Title of {i}"} for i in range(N_ITEMS)]
    (folder / "item_text.jsonl").write_text("".join(json.dumps(title) + "\n" for title in titles))
    pictures = root / "pictures"
    pictures.mkdir()
    image.new("RGB", (40, 40), (200, 0, 0)).save(pictures / "B0003.png")
    runs = [
        train(folder, root / "a", "lgn_mm", neighbour_weight=2.0, epochs=4),
        train(folder, root / "b", "mf"),
    ]
    path = root / "page.html"
    argv = [
        "--checkpoint",
        runs[0],
        "--compare",
        runs[1],
        "--pictures",
        pictures,
        "--output",
        path,
        "--cuda",
        "0",
    ]
    assert explore.main([str(word) for word in argv]) == 0
    return path, runs[0]


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """A browser."""
    with chromium.Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def browser(started, page):
    """The browser with the page open at 1280 pixels, which must end without a problem."""
    started.problems.clear()
    started.open(page[0])
    yield started
    assert started.problems == [] and started.run("window.stolen") is None


def names_in_order(folder, user, k=10):
    """Titles of the best items of a user, by float64 vectors and a dense W."""
    model, dataset, _ = load(folder)
    users, items = (vectors.detach().double().numpy() for vectors in model.embeddings())
    own = [j for u, j in dataset.interactions.train if u == user]
    weights = model.item_weights()
    scores = items @ users[user] + weights.factor * weights.matrix.to_dense().double().numpy()[own].sum(0)
    scores[own] = -np.inf
    return [HOSTILE if i == 5 else f"Title of {i}" for i in np.argsort(-scores)[:k]]


def test_the_first_user_is_shown_with_the_list_of_the_run(browser, page):
    assert browser.text("#summary") == "40 users, 30 items, the top 10 without items of train"
    assert browser.text("#user h2") == "user-0é"
    assert browser.texts(".recommended .name button:first-child")[:10] == names_in_order(page[1], 0)
    assert browser.texts(".recommended .name button:first-child")[10:] != []  # the second run's
    assert len(browser.texts("#user .items button")) == 6
    values = browser.texts(".recommended li:first-child .values")[0].replace("\u2212", "-").split()
    numbers = {name: float(value) for name, value in zip(values[::2], values[1::2])}
    assert sum(numbers.values()) - numbers["score"] == pytest.approx(numbers["score"], abs=0.004)
    assert {"score", "ID", "text", "image", "evidence"} <= numbers.keys()
    assert browser.texts(".because")[0].startswith("because of Title of ")


def test_search_and_choose_a_user(browser, page):
    browser.click("#user-search")
    browser.type("USER-17")
    assert browser.texts(RESULT) == ["user-17é\n6 items"] and browser.text(".count") == "1 found"
    browser.click(RESULT)
    browser.until("document.querySelector('#user h2').innerText === 'user-17é'")
    assert browser.texts(CHOSEN) == ["user-17é\n6 items"]
    assert browser.texts(".recommended .name button:first-child")[:10] == names_in_order(page[1], 17)
    browser.run("history.back()")
    browser.until("document.querySelector('#user h2').innerText === 'user-0é'")


def test_hits_are_marked_and_only_their_users_listed(browser):
    browser.click("#only-hits")
    found = len(browser.texts(RESULT))
    assert 0 < found < N_USERS
    browser.click(RESULT)
    browser.until(f"document.querySelector({json.dumps(CHOSEN)})")
    assert {*browser.texts("#user .badge")} <= {"test item", "valid item"}
    assert browser.texts("#user > .two > :first-child .badge")


def test_keys_search_move_and_choose(browser):
    browser.press("/")
    browser.type("user-2")
    browser.press("ArrowDown"), browser.press("ArrowDown")
    assert browser.run("document.activeElement.innerText").startswith("user-20")
    browser.press("ArrowUp"), browser.press("Enter")
    browser.until("document.querySelector('#user h2').innerText === 'user-2é'")


def test_choose_an_item_and_a_neighbour(browser):
    browser.click("nav button[data-view=items]")
    browser.until("!document.getElementById('items').hidden")
    browser.click("#item-search")
    browser.type("b0003")
    browser.click("#items .results button")
    browser.until("document.querySelector('#item h2').innerText === 'Title of 3'")
    headings = [text.lower() for text in browser.texts("#item h3")]
    assert headings == ["near by text", "near by image", "near by id", "bought together"]
    browser.until("document.querySelector('#item img').naturalWidth === 40")
    name = browser.texts("#item .near li > button")[0]
    browser.click("#item .near li > button")
    browser.until(f"document.querySelector('#item h2').innerText === {json.dumps(name)}")


def test_an_item_without_features_has_no_agreement_and_no_colour(browser):
    path, colour = browser.run("location.pathname"), []
    for item in (WITHOUT_IMAGE, 4):
        browser.open(path, address=f"#items/B000{item}")
        browser.until("document.querySelector('canvas').width > 300")
        assert any("text and image agree" in text for text in browser.texts("#item p")) == (item == 4)
        place = f"pointOf({item}).map((at) => Math.round(at * devicePixelRatio))"
        pixel = f"[...map.canvas.getContext('2d').getImageData(...{place}, 1, 1).data]"
        colour.append(browser.run(pixel))
    assert colour[0][3] == 0 and colour[1][3] == 255  # transparent inside of a ring


def test_the_map_finds_the_item_under_the_pointer(browser):
    browser.open(browser.run("location.pathname"), address="#items/B0004")
    browser.until("document.querySelector('canvas').width > 300")
    drawn = "map.canvas.toDataURL()"
    before = browser.run(drawn)
    browser.click("input[value=popularity]")
    assert len(before) > 5000 and browser.run(drawn) != before
    browser.run("map.canvas.scrollIntoView({block: 'center'})")
    x, y = browser.run(
        "(() => { const box = map.canvas.getBoundingClientRect(), [x, y] = pointOf(9);"
        " return [box.x + x + 1, box.y + y + 1] })()"
    )
    for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
        browser.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
    browser.until("document.querySelector('#item h2').innerText !== 'Title of 4'")
    assert browser.text("#item h2") == "Title of 9"


def test_compare_two_runs(browser):
    browser.click("nav button[data-view=compare]")
    browser.until("!document.getElementById('compare').hidden")
    assert browser.text("#compare h2") == "RecGOAT and MF"
    rows = [row.split("\t") for row in browser.texts("#compare tbody tr")]
    assert rows[-1][:2] == ["all", "40"] and sum(int(row[1]) for row in rows[:-1]) == 40
    for row in rows:
        first, second, difference = (float(cell.replace("\u2212", "-")) for cell in row[2:5])
        assert second - first == pytest.approx(difference, abs=2e-4)
    name = browser.texts(".users-list button span:first-child")[0]
    browser.click(".users-list button")
    browser.until("document.querySelectorAll('#side-by-side .recommended').length === 2")
    assert browser.text("#side-by-side h2") == name
    assert browser.texts(".users-list button[aria-current] span:first-child") == [name]


def test_the_metrics_are_those_of_the_runs(browser, page):
    """With 10 as the larger of the run's cut-offs."""
    browser.click("nav button[data-view=compare]")
    browser.until("!document.getElementById('compare').hidden")
    expected = json.loads((page[1] / "result.json").read_text())["test"]["ndcg@10"]
    assert float(browser.texts("#compare tbody tr")[-1].split("\t")[2]) == pytest.approx(expected, abs=6e-5)


def test_a_hostile_title_is_shown_as_it_is(browser):
    browser.open(browser.run("location.pathname"), address="#items/B0005")
    browser.until("document.querySelector('#item h2')")
    assert browser.text("#item h2") == HOSTILE
    assert browser.run("document.querySelectorAll('img[src=x]').length") == 0


@pytest.mark.parametrize("address", ["", "#items/B0003", "#compare/user-3%C3%A9"])
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_420_pixels(browser, page, address, dark):
    browser.open(page[0], width=420, address=address, dark=dark)
    browser.until("document.querySelector('main h2')")
    assert browser.run("document.documentElement.scrollWidth") == 420
    wide = browser.run(
        "[...document.querySelectorAll('main *')].filter((one) => one.checkVisibility()"
        " && !one.closest('.scroll') && one.getBoundingClientRect().right > 421)"
        ".map((one) => one.outerHTML.slice(0, 80))"
    )
    assert wide == []


@pytest.mark.parametrize(
    "address, known",
    [
        ("#users/%", "#users"),
        ("#nothing", "#users"),
        ("#items/absent", "#items"),
        ("#compare/absent", "#compare"),
    ],
)
def test_an_unknown_address_shows_the_first(browser, page, address, known):
    shown = []
    for each in (known, address):
        browser.open(page[0], address=each)
        browser.until("document.querySelector('main section:not([hidden]) h2')")
        shown.append(browser.run("document.querySelector('main section:not([hidden])').innerText"))
    assert shown[0] and shown[0] == shown[1]
