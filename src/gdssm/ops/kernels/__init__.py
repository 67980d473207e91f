"""The Triton backend: gd_scan on a GPU in fused kernels. Importing this package needs no Triton; see support.py.

| file         | holds                                                                    |
|--------------|--------------------------------------------------------------------------|
| support.py   | what the kernels take, and what to say where they do not                 |
| tiles.py     | tile sizes per kernel, features, operands and decay                      |
| shared.py    | device functions of all kernels                                          |
| forward.py   | states at segment starts, outputs                                        |
| backward.py  | gradients per chunk, gradients of the tokens                             |
| decode.py    | one token for all heads                                                  |
| launch.py    | buffers and launches                                                     |
| operator.py  | the custom operators of torch, with gradients and shapes for tracing     |
| scan.py      | what gd_scan calls                                                       |
| shipped.py   | every specialisation that ships, and a fingerprint of each               |
| compiled.py  | what one uses, from the compiler, without a GPU                          |

The kernels are checked against the reference under Triton's interpreter, and compiled without a GPU (docs/kernels.md says how
many of them). Neither finds a race between threads, and neither measures speed.
"""
