"""The settings that one built-in model alone has, by name: flags while --model names it.

They stand here and not in the modules of the models, which import torch: the command line has to know all
flags at once. The class of a model has a reference to them: `settings = ITEMKNN_SETTINGS`.
"""

from __future__ import annotations

from world import setting, switch

ITEMKNN_SETTINGS = {
    "itemknn_k": setting(0, "model", "most similar items kept for each item; 0 keeps all", low=0),
    "itemknn_similarity": setting(
        "cosine",
        "model",
        "cosine of co-occurrence, or the weights of the neighbourhood term (--neighbour_content, "
        "--neighbour_power, ...)",
        choices=("cosine", "neighbours"),
    ),
}
EASE_SETTINGS = {
    "ease_l2": setting(200.0, "model", "L2 regularisation of the item weights", low=1e-6),
    "ease_k": setting(500, "model", "weights kept for each item; 0 keeps all", low=0),
}
BM3_SETTINGS = {
    "bm3_dropout": setting(0.5, "model", "share of a target vector that is dropped", low=0.0, high=0.99),
    "bm3_weight": setting(0.1, "alignment", "weight of the terms that align features", low=0.0),
    "bm3_train_features": switch(0, "model", "1 trains the features too, as BM3 in MMRec does"),
}
LATTICE_SETTINGS = {
    "lattice_initial": setting(
        0.9, "model", "share of the graphs of the features themselves; the rest is learnt", low=0.0, high=1.0
    ),
}
MGCN_SETTINGS = {
    "mgcn_contrast": setting(0.01, "alignment", "weight of InfoNCE(features, IDs)", low=0.0),
    "mgcn_temperature": setting(0.2, "alignment", "temperature of InfoNCE", low=1e-3),
}
SMORE_SETTINGS = {
    "smore_contrast": setting(0.01, "alignment", "weight of InfoNCE(features, IDs)", low=0.0),
    "smore_temperature": setting(0.2, "alignment", "temperature of InfoNCE", low=1e-3),
}
