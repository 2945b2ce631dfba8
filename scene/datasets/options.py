"""What to load and how: the flags of loading, declared once."""

from __future__ import annotations

from dataclasses import dataclass, field

KEEP = ("auto", "cuda", "cpu")  # where decoded pictures are kept while a GPU trains on them


@dataclass
class DataOptions:
    """Fields are command line flags of the same name."""

    source_path: str = field(default="", metadata={"alias": "-s", "help": "dataset folder"})
    images: str = field(
        default="images",
        metadata={"alias": "-i", "help": "picture folder to use where the dataset says `images`"},
    )
    resolution: int = field(
        default=-1,
        metadata={"alias": "-r", "help": "1, 2, 4, 8 divide the size; -1 reduces to 1600 px wide; else a width in px"},
    )
    white_background: bool = field(
        default=False, metadata={"alias": "-w", "help": "white background; must match training and rendering"}
    )
    data_device: str = field(
        default="auto",
        metadata={"help": "keep decoded pictures on the GPU of --device (cuda), or in memory and copy each (cpu); "
                          "auto: on the GPU if they fit"},
    )  # fmt: skip
    eval: bool = field(default=False, metadata={"help": "keep val and test frames out of training"})
    select_camera_id: str = field(
        default="-1",
        metadata={"help": "use one camera only: its camera_index, or else its camera_id; -1 uses all"},
    )
    bind_to_mesh: bool = field(default=False, metadata={"help": "bind Gaussians to the animated FLAME mesh"})
    data_root: str = field(
        default="",
        metadata={"help": "folder that the dataset's paths may not leave; default: the parent of source_path"},
    )
    image_memory_gb: float = field(
        default=4.0, metadata={"help": "pictures that need more are kept in a memory-mapped file in cache_dir"}
    )
    cache_dir: str = field(default="", metadata={"help": "folder of that file; default: inside the run folder"})
