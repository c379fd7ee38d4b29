"""Autograd functions."""



def column_major(features):
    """The same [n, dim] with its columns one after another in memory, each at a multiple of 64 bytes; a tensor of a GPU as it is.

    Products with it and with its transpose are a sixth faster than with rows, at the few columns of a weight.
    """
    n, dim = features.shape
    if features.device.type != "cpu":
        return features
    columns = features.new_empty(dim, -(-n // 16) * 16)[:, :n]
    for part, rows in zip(columns.split(1024, 1), features.split(1024)):
        part.copy_(rows.T)
    return columns.T
