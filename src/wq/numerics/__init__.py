"""What values a number format can hold, and what rounding a tensor to it gives and costs.

Read in this order: `formats` (the description of a format), `elements` (rounding to its grid), `scales`
(choosing scales), `granularity` (which elements share a scale), `shared_scales` (scales of a whole tensor),
`fake_quant` (the operations), `native` and `fused` (the same in one pass, on a CPU and on a GPU), `packing`
(as dense bits), `storage` (the exact size), `effective` (which settings matter). Nothing is imported here, so
that a configuration can be checked without torch.
"""
