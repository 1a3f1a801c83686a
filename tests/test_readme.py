"""What the README shows works as it stands there."""

import os
import re
import subprocess
import sys
from pathlib import Path

from programs import THIS_CHECKOUT

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [path for path in ROOT.glob("**/README.md") if ".venv" not in path.parts]


def code_blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_an_own_network_trains_and_exits_early(tmp_path):
    (example,) = [block for block in code_blocks("python") if "class MultiExitResNet" in block]
    script = tmp_path / "own_network.py"
    script.write_text(example)
    # Compiled as users have it: it computes more than it compiles.
    done = subprocess.run(
        [sys.executable, script],
        env=os.environ | THIS_CHECKOUT,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    accuracy, left = re.fullmatch(
        r"top-1 ([\d.]+)%; images that left at each exit: \[([\d ]+)\]\n", done.stdout
    ).groups()
    assert float(accuracy) > 85
    counts = [int(count) for count in left.split()]
    assert sum(counts) == 360
    assert all(count > 0 for count in counts)


def test_first_two_blocks_run_and_test_it():
    assert code_blocks("bash")[:2] == [
        "bash launch/local.sh --config=configs/digits_msdnet.py\n",
        "bash launch/test.sh\n",
    ]


def test_every_file_that_is_named_exists():
    name = r"(?:configs|launch|tests|l2w_jax)/[\w/]+\.(?:py|sh|sbatch|yaml)"
    named = re.findall(name, "".join(page.read_text() for page in PAGES))
    assert len(named) > 40
    missing = {name for name in named if not (ROOT / name).is_file()}
    assert missing == {"configs/NAME.py"}


def anchors(page):
    """What GitHub calls the headings of a page in links."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_every_link_leads_somewhere():
    links = [
        (page.parent / target, heading)
        for page in PAGES
        for target, heading in re.findall(r"\]\(([\w./-]+\.\w+)(?:#([\w-]+))?\)", page.read_text())
    ]
    assert len({heading for _, heading in links}) > 5, "some lead to a heading"
    for path, heading in links:
        assert path.exists(), path
        assert not heading or heading in anchors(path), f"{path}#{heading}"
