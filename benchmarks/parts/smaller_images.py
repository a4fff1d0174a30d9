"""Parquet files of images made smaller once, so that reading them costs a run less.

    python benchmarks/parts/smaller_images.py path/to/imagenette224 96 runs/imagenette96

Each image is resized by Pillow (Lanczos) so that its shorter side has so many pixels, and written as PNG, next to all
other columns. File names are kept, as splits are read from them.
"""

import argparse
import io
from pathlib import Path
from typing import Any

import pyarrow.parquet
from PIL import Image


def smaller(encoded: bytes, side: int) -> bytes:
    """Return an encoded image as a PNG whose shorter side has `side` pixels."""
    with Image.open(io.BytesIO(encoded)) as image:
        factor = side / min(image.size)
        size = tuple(round(factor * length) for length in image.size)
        found = io.BytesIO()
        image.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(found, "PNG")
    return found.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="parquet files whose column `image` holds encoded images")
    parser.add_argument("side", type=int)
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    for path in sorted(options.folder.glob("*.parquet")):
        table = pyarrow.parquet.read_table(path)
        rows: list[dict[str, Any]] = table.column("image").to_pylist()
        images = [row | {"bytes": smaller(row["bytes"], options.side)} for row in rows]
        column = pyarrow.array(images, type=table.schema.field("image").type)
        table = table.set_column(table.schema.get_field_index("image"), table.schema.field("image"), column)
        pyarrow.parquet.write_table(table, options.output / path.name)


if __name__ == "__main__":
    main()
