"""Names of the models as tables and figures show them.

label("lgn_mm")                 # "RecGOAT"
label("my_models.py:Wide")      # "Wide"
"""

LABELS = {
    "mf": "MF",
    "lgn": "LightGCN",
    "vbpr": "VBPR",
    "freedom": "FREEDOM",
    "itemknn": "ItemKNN",
    "lgn_mm": "RecGOAT",
}


def label(model: str) -> str:
    """Display name of a --model value; for a user's own "path/file.py:Class", the class name."""
    return LABELS.get(model) or model.rpartition(":")[2]
