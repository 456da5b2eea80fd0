"""How long a step takes, from data sheets and a few fitted constants.

efficiency     the constants: what fraction of its data sheet a card reaches, each with its source
kernels        matrix products, attention, memory-bound passes
passes, layer, mixture, ends   what a decoder layer, a mixture of experts, embedding and head take on one rank
collectives    ring, tree, all-to-all and send on a group's link
traffic, tails   what communication a layer exposes in each microbatch, and a stage once a step
coefficients   all of it as integers for one choice of degrees
form           the integers' meaning: what the solver minimises
step, report   the step of a layout by component
schedule       pipeline schedules as graphs, which check the form
flops          what MFU counts
"""
