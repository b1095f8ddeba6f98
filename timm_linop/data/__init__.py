"""Images in, batches out: any labelled image set through `datasets`, timm's transforms.

    spec --sources--> named splits --columns--> "image", "label" --splits--> train, validation, test
    ImageData --transforms, loader--> (images [b c h w], labels [b])

`load_data` reads, `check_fits` holds the images against the model before any long work,
`make_transforms` asks timm for its transforms, `make_loader` makes a plain DataLoader for
accelerate, and `make_expanded_loader` one of six fixed versions of each image (`expansion`).
`stream` does without a copy on the disk. Whatever is wrong with the data is a
`timm_linop.errors.DataError`.
"""

from timm_linop.data.expansion import VERSIONS, make_expanded_loader
from timm_linop.data.images import ImageData, check_fits, load_data
from timm_linop.data.loader import make_loader
from timm_linop.data.transforms import Augmentation, make_transforms

__all__ = [
    "VERSIONS",
    "Augmentation",
    "ImageData",
    "check_fits",
    "load_data",
    "make_expanded_loader",
    "make_loader",
    "make_transforms",
]
