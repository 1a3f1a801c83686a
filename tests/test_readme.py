"""What the README shows works as it stands there."""

import os
import re
import subprocess
import sys
from pathlib import Path

from programs import THIS_CHECKOUT

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


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
    pages = [path.read_text() for path in ROOT.glob("**/README.md") if ".venv" not in path.parts]
    name = r"(?:configs|launch|tests|l2w_jax)/[\w/]+\.(?:py|sh|sbatch|yaml)"
    named = re.findall(name, "".join(pages))
    assert len(named) > 40
    missing = {name for name in named if not (ROOT / name).is_file()}
    assert missing == {"configs/NAME.py"}


def test_every_link_leads_somewhere():
    for page in ROOT.glob("**/README.md"):
        if ".venv" in page.parts:
            continue
        for target in re.findall(r"\]\(([\w./-]+\.\w+)\)", page.read_text()):
            assert (page.parent / target).exists(), target
