"""Limits of the numbers among the inference options; imports nothing, so that help is quick."""

# Option -> (least, most); None: no limit. A larger process size needs more memory than there is.
LIMITS: dict[str, tuple[int, int | None]] = {
    "process_size": (4, 16384),
    "latent_tile": (2, None),
    "latent_overlap": (0, None),
    "encoder_tile": (8, None),
    "decoder_tile": (1, None),
}
