"""From the structure of a nest to directives.

| file | the structure |
|---|---|
| default | a kernel: which stages run together, a recipe for each, sums ahead of them |
| nest | a nest: which of the roads below it takes, and the one for register tiles |
| choice | the candidates of a nest, and the cheapest |
| across, dots, parts | sums along memory: lanes are partial results, or rows are added up |
| streams, fusion | windows, statistics and maps, bound by bytes; stages that run together |
| folding, unfolding, groups, panels, collecting | products that want another form first |
| normalize, nesting, following, peeling | how loops are joined, ordered, and cut at edges |
"""
