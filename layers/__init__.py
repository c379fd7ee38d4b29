"""Layers and losses of the models: attention, transport, contrastive loss, sparse kernels."""
