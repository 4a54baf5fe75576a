"""Bad inputs of the command line: numbers, names, outputs that cannot be written."""

from bad_inputs.table import BadInput

ROWS = [
    BadInput(
        kind=11,
        given="image that is not there",
        prepare=lambda folder: ["upscale", "lr.png", "sr.png"],
        answer="lr.png: image not found",
    ),
]
