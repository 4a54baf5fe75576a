"""From LR image to SR image: sizes, tiles, colours."""
