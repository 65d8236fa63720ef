"""The published command line: options before, between and behind the KEY VALUE pairs."""

import subprocess

import pytest

from regionclip.engine.command import detector_argument_parser
from tests.helpers.paths import REPOSITORY

LINES = {
    "upstream's order": "--resume --num-gpus 2 --config-file a.yaml SOLVER.BASE_LR -1e-4 MODEL.WEIGHTS a.pth",
    "at the end": "--config-file a.yaml SOLVER.BASE_LR -1e-4 MODEL.WEIGHTS a.pth --resume --num-gpus 2",
    "between": "SOLVER.BASE_LR -1e-4 --num-gpus=2 --config-file=a.yaml MODEL.WEIGHTS a.pth --resume",
    "abbreviated": "SOLVER.BASE_LR -1e-4 --res --num-g 2 --conf a.yaml MODEL.WEIGHTS a.pth",
}


@pytest.mark.parametrize("line", LINES)
def test_options_may_stand_anywhere(line):
    args = detector_argument_parser("").parse_args(LINES[line].split())
    assert (args.resume, args.num_gpus, args.config_file) == (True, 2, "a.yaml")
    assert args.opts == ["SOLVER.BASE_LR", "-1e-4", "MODEL.WEIGHTS", "a.pth"]


def test_required_options_may_stand_at_the_end():
    parser = detector_argument_parser("")
    parser.add_argument("--images", required=True)
    args = parser.parse_args(["KEY", "VALUE", "--images", "photos"])
    assert (args.images, args.opts) == ("photos", ["KEY", "VALUE"])


def test_a_value_may_look_like_an_option():
    assert detector_argument_parser("").parse_args(["OUTPUT_DIR", "--odd", "A", "b"]).opts[:2] == [
        "OUTPUT_DIR",
        "--odd",
    ]


def test_an_unknown_option_is_named(capsys):
    with pytest.raises(SystemExit) as stopped:
        detector_argument_parser("").parse_args(["KEY", "VALUE", "--resumed"])
    assert stopped.value.code == 2 and "unrecognized arguments: --resumed" in capsys.readouterr().err


@pytest.mark.parametrize("options", [("--trust-pickle",), ("--num-gpus", "0"), ()])
def test_overrides_of_scripts_are_read_among_options(options):
    """`visualize_zeroshot_inference.sh` reads OUTPUT_DIR to know where the detections are."""
    call = 'source tools/published_cases.sh; override OUTPUT_DIR ./output "$@"'
    arguments = ["A.KEY", "1", *options, "OUTPUT_DIR", "here", *options]
    done = subprocess.run(["bash", "-c", call, "bash", *arguments], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.stdout == "here\n", done.stderr
