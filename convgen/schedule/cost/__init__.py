"""What a candidate costs, in closed form: cycles of one core, from constants tabled per CPU model.

Facts and candidates come in, numbers go out; nothing here knows a directive's effect or a clock.

| file | what it counts |
|---|---|
| score | the whole of a candidate: operations, loads, waiting, bytes; its copies; its stores |
| bounds | what it takes at least, told quickly |
| reuse, sharing, locality | what caches, registers, and the order of outer loops keep |
| copies, passing | packing; what workers read that others have packed |
| blocks, edges | sums in blocks; iterations that run apart |
| alike | which nests need one answer |
"""
