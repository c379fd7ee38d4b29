"""Datasets that data.download knows: the URLs, names and published checksums of their files.

    source = SOURCES["hf_baby"]
    source.folder                                  # "baby_raw"
    [remote.name for remote in source.files]       # ["baby.inter", "text_feat.npy", "image_feat.npy"]

To add a dataset, add a Source to SOURCES.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Remote:
    """One file of a dataset."""

    # Its name for --files.
    kind: str
    # Path under the base URL.
    path: str
    # Published SHA-256, "" if none is known.
    sha256: str = ""

    @property
    def name(self) -> str:
        """The local file name."""
        return self.path.rsplit("/", 1)[-1]


@dataclasses.dataclass(frozen=True)
class Source:
    """A dataset and its origin."""

    # Dataset folder under --data_root.
    folder: str
    files: tuple[Remote, ...]
    # "" if the files can only be downloaded by hand.
    base_url: str
    # What to do when the files are not at base_url; part of error messages.
    remedy: str


# The folder linked by MMRec's data/README.md and by RecGOAT's data/baby_raw/README.md. The file names are
# those of MMRec's src/configs/dataset/*.yaml. Google Drive lists a folder only through an API that needs a
# personal key.
DRIVE_URL = "https://drive.google.com/drive/folders/13cBy1EA_saTUuXxVllKgtfci2A09jyaG"
# The one known place with all four kinds of file. The paths are those of McAuley's links.html; the lab's own
# copy has moved twice since then (jmcauley.ucsd.edu, cseweb.ucsd.edu) and now keeps categoryFiles/ under the
# second URL.
AMAZON_URL = "https://snap.stanford.edu/data/amazon/productGraph"
AMAZON_LAB_URL = "https://mcauleylab.ucsd.edu/public_datasets/data/amazon"
# HEAD is the default branch of the repository, whatever its name.
RECGOAT_URL = "https://raw.githubusercontent.com/6lyc/RecGOAT/HEAD"
# Owner of the Hugging Face datasets Baby, Sports and Clothing.
MIRROR_URL = "https://huggingface.co/datasets/MrShouxingMa"

BABY_SHA256 = {
    "inter": "9ef5de9a05949d973928cca113aacba12067ff8f104e310ef28ea42db00c17b1",  # 4,523,032 bytes
    "text": "6667f2ad655c9ecc97cb3383f58988864ef51ec0b39c158b15986c66769f2dc4",  # 7050 x 384 float32
    "image": "36c3be592b98506189a7d5de71b21577cf626f0293b539d861534673b3e9fd70",  # 7050 x 4096 float64
}


def mmrec_files(name: str, prefix: str = "", sha256: dict[str, str] | None = None) -> tuple[Remote, ...]:
    """The three files of a dataset in MMRec's layout."""
    paths = {"inter": f"{name}.inter", "text": "text_feat.npy", "image": "image_feat.npy"}
    return tuple(Remote(kind, prefix + path, (sha256 or {}).get(kind, "")) for kind, path in paths.items())


def mmrec(name: str, folder: str, sha256: dict[str, str] | None = None) -> Source:
    """A dataset of MMRec's Google Drive folder, to be downloaded by hand."""
    remedy = (
        f"a program cannot list a Google Drive folder: open {DRIVE_URL} in a browser and download them from "
        f"the folder of this dataset (MMRec calls it '{name}')"
    )
    return Source(folder, mmrec_files(name, f"{name}/", sha256), "", remedy)


def mirror(name: str, sha256: dict[str, str] | None = None) -> Source:
    """MMRec's files from a Hugging Face dataset.

    The file names are MMRec's. They could not be verified against the mirror when this table was written, so
    a name may be missing there: the download then fails with HTTP 404 and the remedy below.
    """
    page = f"{MIRROR_URL}/{name.capitalize()}"
    remedy = f"the mirror may have renamed its files: see {page}/tree/main, download them in a browser"
    return Source(f"{name}_raw", mmrec_files(name, "", sha256), f"{page}/resolve/main", remedy)


def amazon(category: str, folder: str) -> Source:
    """Raw Amazon 2014 files of a category."""
    files = (
        Remote("ratings", f"categoryFiles/ratings_{category}.csv"),
        Remote("reviews", f"categoryFiles/reviews_{category}_5.json.gz"),
        Remote("meta", f"categoryFiles/meta_{category}.json.gz"),
        Remote("image", f"image_features/categoryFiles/image_features_{category}.b"),
    )
    remedy = (
        f"these files have moved before: give their new place as --base_url (the lab's copy: "
        f"{AMAZON_LAB_URL}), or download them in a browser"
    )
    return Source(folder, files, AMAZON_URL, remedy)


SOURCES = {
    "hf_baby": mirror("baby", BABY_SHA256),
    "hf_sports": mirror("sports"),
    "hf_clothing": mirror("clothing"),
    "mmrec_baby": mmrec("baby", "baby_raw", BABY_SHA256),
    "mmrec_sports": mmrec("sports", "sports_raw"),
    "mmrec_electronics": mmrec("elec", "electronics_raw"),
    "amazon_baby": amazon("Baby", "amazon_baby"),
    "amazon_sports": amazon("Sports_and_Outdoors", "amazon_sports"),
    "amazon_electronics": amazon("Electronics", "amazon_electronics"),
    "recgoat_baby": Source(
        "baby_raw",
        tuple(Remote(split, f"data/baby_raw/{split}.txt") for split in ("train", "valid", "test")),
        RECGOAT_URL,
        "download them in a browser from github.com/6lyc/RecGOAT, data/baby_raw",
    ),
}
