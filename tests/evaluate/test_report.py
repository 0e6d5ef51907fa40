"""The report in a browser: complete, self-contained; sorting, keyboard, themes."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import make_shards
from PIL import Image
from ranks import ROOT
from small_emulator import make_emulator
from wave_emulator import WaveCodec, WaveEmulator, write_split

from lola_ds.cli.common import run_command
from lola_ds.cli.report import main
from lola_ds.data import ShardDataset
from lola_ds.evaluate import Forecast, evaluate, evaluate_autoencoder
from lola_ds.evaluate.plots.charts import Curve
from lola_ds.evaluate.provenance import write_provenance
from lola_ds.evaluate.report.parts import Row, line_chart, number_table
from lola_ds.evaluate.report.runs import differences, find_runs
from lola_ds.metrics import vrmse

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.xdist_group("chromium")  # one worker makes the results once
DEMO = ROOT / "demo" / "report.html"
TITLE = 'Waves & "noise" <compared>'


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ensembles (little noise, much noise), a surrogate of pixels and an autoencoder."""
    root = tmp_path_factory.mktemp("report")
    (root / "shards" / "waves").mkdir(parents=True)
    write_split(root / "shards" / "waves" / "test")
    dataset = ShardDataset(root / "shards" / "waves" / "test")
    out, runs = root / "results", root / "runs"
    forecast = Forecast(steps=3, members=3)
    for name, noise, draw in (("calm", 0.1, True), ("noisy", 0.5, False)):
        options = {"train": dataset, "progress": False, "draw": draw}
        evaluate(WaveEmulator(noise), dataset, out / name, forecast, **options)
        keep_provenance(out / name, runs / name, {"task": "diffusion", "noise": noise})
    surrogate = WaveEmulator(0.2, generative=False, pixels=True)
    evaluate(surrogate, dataset, out / "surrogate", forecast, draw=False, progress=False)
    evaluate_autoencoder(WaveCodec(), dataset, out / "autoencoder", 3, progress=False)
    return out


def keep_provenance(out: Path, run: Path, config: dict[str, Any]) -> None:
    run.mkdir(parents=True)
    lines = [{"step": s, "time": s, "train/loss": 1 / s, "train/lr": 1e-3} for s in range(1, 9)]
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 9, "ti'
    (run / "metrics.jsonl").write_text(text)
    write_provenance(out, run, config | {"run": str(run)}, parameters=12345)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of a network of pixels: three members, 3-d states with unequal sides."""
    root = tmp_path_factory.mktemp("volumes")
    x = np.random.default_rng(0).standard_normal((2, 5, 4, 16, 12, 8)).astype(np.float32)
    make_shards(root / "noise" / "test", x)
    dataset = ShardDataset(root / "noise" / "test")
    emulator = make_emulator(4, latent=False, spatial=3, labels=7, factor=4)
    forecast = Forecast(steps=4, members=3, sampling_steps=2)
    out = root / "results"
    found = evaluate(emulator, dataset, out, forecast, train=dataset, progress=False)
    assert found is not None
    last = torch.from_numpy(x[1, [0, 4]])
    expected = vrmse(last[1], last[0], 3).tolist()
    table = found.table.query("method == 'persistence' and metric == 'vrmse' and lead == 4")
    assert table.query("trajectory == 1")["value"].tolist() == pytest.approx(expected)
    return out


@pytest.fixture(scope="module")
def page(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page") / "new" / "report.html"
    main([str(results), f"out={out}", f"title={TITLE}"])
    return out


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("chromium or chromedriver is missing (Debian: chromium chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is missing")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.add_argument("--window-size=1200,900")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=DRIVER)
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


def column(browser: Any, table: int, index: int) -> list[str]:
    script = """const t = document.querySelectorAll("table.sortable")[arguments[0]];
    return [...t.tBodies[0].rows].map(row => row.cells[arguments[1]].textContent);"""
    return browser.execute_script(script, table, index)


def test_the_page_in_chromium(browser: Any, page: Path) -> None:
    check_page(browser, page, pictures=14)
    assert browser.title == TITLE


def test_three_dimensions_have_every_figure(volumes: Path) -> None:
    folder = volumes / "ab2-members3-steps4"
    fields = json.loads((folder / "summary.json").read_text())["fields"]
    assert len(fields) == 4
    names = {f"{kind}_{field}.png" for kind in ("snapshots", "slices") for field in fields}
    names |= {f"{n}.png" for n in ("vrmse", "vrmse_by_field", "spectra", "spread_skill", "ranks")}
    assert names | {"animation.gif"} <= {path.name for path in folder.iterdir()}
    pictures = {name: Image.open(folder / name) for name in names}
    assert min(min(picture.size) for picture in pictures.values()) > 300
    assert len({picture.tobytes() for picture in pictures.values()}) == len(names)
    with Image.open(folder / "animation.gif") as image:
        assert image.n_frames == 5


def test_the_page_of_three_dimensions_in_chromium(
    browser: Any, volumes: Path, tmp_path: Path
) -> None:
    out = tmp_path / "report.html"
    main([str(volumes), f"out={out}"])
    check_page(browser, out, pictures=13)
    assert "cut across every axis" in out.read_text()


@pytest.mark.skipif(not DEMO.is_file(), reason=f"{DEMO} is missing: `make demo` writes it")
def test_the_report_of_the_demo_in_chromium(browser: Any) -> None:
    check_page(browser, DEMO, pictures=21)
    names = {name.split()[0].rstrip(",") for name in column(browser, 0, 0)}
    assert names == {"autoencoder", "surrogate", "diffusion", "persistence", "climatology"}
    assert len(browser.find_elements("css selector", "#training svg[role=img]")) > 2


def check_page(browser: Any, page: Path, pictures: int) -> None:
    """Checks that everything loads, nothing is logged and no element is wider than the page."""
    browser.get(page.as_uri())
    browser.execute_script("for (const d of document.querySelectorAll('details')) d.open = true")
    loaded = browser.execute_async_script(
        """const done = arguments[0];
        const images = [...document.images];
        const videos = [...document.querySelectorAll("video")];
        const ready = videos.map(v => v.readyState >= 2 ? null : new Promise(
            resolve => { v.onloadeddata = v.onerror = resolve; }));
        Promise.all([...images.map(i => i.decode()), ...ready]).then(() => done({
            images: images.map(i => i.naturalWidth),
            videos: videos.map(v => [v.readyState, v.videoWidth, v.error && v.error.message]),
        })).catch(error => done(String(error)));"""
    )
    assert isinstance(loaded, dict), loaded
    assert len(loaded["images"]) >= pictures
    assert min(loaded["images"]) > 100
    media = len(loaded["videos"]) + sum("animation.gif" in t for t in [page.read_text()])
    assert media >= 1
    for state, width, error in loaded["videos"]:
        assert (state >= 2, width > 100, error) == (True, True, None)
    assert browser.get_log("browser") == []
    wide = "return document.documentElement.scrollWidth <= window.innerWidth"
    assert browser.execute_script(wide)
    fits = "w => w.scrollWidth <= w.clientWidth"
    assert browser.execute_script(f"return [...document.querySelectorAll('.wide')].every({fits})")
    browser.set_window_size(500, 900)
    assert browser.execute_script(wide)
    browser.set_window_size(1200, 900)


def test_tables_sort_by_keyboard(browser: Any, page: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    browser.get(page.as_uri())
    buttons = "table.sortable thead th:nth-child(5) button"
    button = browser.find_element("css selector", buttons)  # VRMSE of the overview
    button.send_keys(Keys.ENTER)
    names = [name.split()[0] for name in column(browser, 0, 0)]
    assert names.index("calm") < names.index("noisy")
    numbers = [float(x) for x in column(browser, 0, 4)]
    assert numbers == sorted(numbers)
    button.send_keys(Keys.SPACE)
    assert [float(x) for x in column(browser, 0, 4)] == sorted(numbers, reverse=True)
    state = "return arguments[0].closest('th').getAttribute('aria-sort')"
    assert browser.execute_script(state, button) == "descending"
    ratio = browser.find_element("css selector", buttons.replace("5", "6"))
    for _ in range(2):  # the autoencoder has none: last either way
        ratio.send_keys(Keys.ENTER)
        assert column(browser, 0, 5)[-1] == "–"
    names = browser.find_element("css selector", buttons.replace("5", "1"))
    names.send_keys(Keys.ENTER)
    assert column(browser, 0, 0) == sorted(column(browser, 0, 0))


def test_light_and_dark(browser: Any, page: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    browser.get(page.as_uri())
    colour = "return getComputedStyle(document.body).backgroundColor"
    light = browser.execute_script(colour)
    browser.find_element("id", "theme").send_keys(Keys.ENTER)
    dark = browser.execute_script(colour)
    sums = [sum(map(int, re.findall(r"\d+", c)[:3])) for c in (light, dark)]
    assert sums[0] > 600
    assert sums[1] < 120
    browser.find_element("id", "theme").send_keys(Keys.SPACE)
    assert browser.execute_script(colour) == light
    browser.refresh()
    browser.find_element("css selector", "body").send_keys(Keys.TAB)
    first = browser.execute_script("return document.activeElement.className")
    assert first == "skip"


def test_baselines_are_in_every_table(page: Path) -> None:
    """All but the tables of reconstructions have them."""
    tables = re.findall(r'<table class="sortable">.*?</table>', page.read_text(), re.DOTALL)
    assert len(tables) > 10
    for table in tables:
        names = re.findall(r'<tr class="baseline"><th scope="row">(.*?)</th>', table)
        if "Reconstructions of the truth" not in table and "autoencoded truth" not in table:
            assert any("persistence" in name for name in names), table[:300]
            assert any("climatology" in name for name in names), table[:300]
            assert any("reconstruction" in name for name in names), table[:300]


def test_the_file_holds_everything(page: Path) -> None:
    text = page.read_text()
    assert "&lt;compared&gt;" in text
    assert "<compared>" not in text
    sources = re.findall(r'(?:src|href)="([^"]{1,30})', text)
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert "@import" not in text
    assert text.count('class="best"') > 10
    assert "12,345" in text
    for name in ("calm", "noisy", "surrogate", "autoencoder"):
        assert f"<summary>{name}</summary>" in text
    assert "train/loss" in text


def test_differences_and_names(results: Path, tmp_path: Path) -> None:
    runs = find_runs([results])
    assert [run.name for run in runs] == ["autoencoder", "calm", "noisy", "surrogate"]
    calm, noisy = runs[1:3]
    assert differences([calm, noisy]) == {
        "noise": [0.1, 0.5],
        "run": [calm.model["config"]["run"], noisy.model["config"]["run"]],
    }
    assert differences([calm, calm]) == {}
    assert len(calm.training) == 8  # without the torn line
    copy = tmp_path / "calm"
    shutil.copytree(results / "calm", copy)
    names = [run.name for run in find_runs([results / "calm", copy])]
    assert names == ["results/calm", f"{tmp_path.name}/calm"]
    assert len(find_runs([results, results / "calm"])) == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no results given"),
        (["nowhere"], "nowhere holds no results"),
        (["{results}", "output=x"], "unknown key 'output'"),
        (["{damaged}"], "summary.json is damaged"),
    ],
)
def test_mistakes_end_in_one_line(
    results: Path,
    tmp_path: Path,
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(results / "autoencoder", damaged)
    (damaged / "frames3" / "summary.json").write_text("{")
    given = [word.format(results=results, damaged=damaged) for word in words]
    with pytest.raises(SystemExit) as caught:
        run_command(main, [*given, f"out={tmp_path / 'report.html'}"])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


def test_a_folder_is_no_page(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a folder; name a page"):
        main([str(tmp_path), f"out={tmp_path}"])


def test_the_best_is_bold_and_ties_share() -> None:
    rows = [
        Row("a", [0.123456, 1.2, None]),
        Row("b", [0.123457, 0.9, float("inf")]),
        Row("c", [0.2, 0.5, 3.0]),
        Row("persistence", [0.01, 1.0, 1.0], baseline=True),
    ]
    html = number_table("t", "m", ["x", "y", "z"], rows, ["low", "one", "high"])
    cells = re.findall(r'<td( class="best")? data-value="([^"]*)">([^<]*)</td>', html)
    best = [shown for kind, _, shown in cells if kind]
    assert best == ["0.123", "0.123", "0.9"]
    assert ("", "", "–") in cells
    assert ("", "1e308", "∞") in cells


def test_charts_leave_out_what_cannot_be_drawn() -> None:
    lines = [Curve("a", [1, 2, 3], [0.1, 0.0, float("nan")], 0), Curve("b", [1], [-1.0], 1)]
    html = line_chart("c", lines, "x", "y", log_y=True)
    assert html.count("<circle") == 1
    assert html.count("<li>") == 1
    assert "nan" not in html
    assert "nothing to draw" in line_chart("c", lines[1:], "x", "y", log_y=True)
    flat = line_chart("c", [Curve("a", [1, 2], [0.0, 0.0], 0)], "x", "y")
    assert flat.count("<circle") == 2
