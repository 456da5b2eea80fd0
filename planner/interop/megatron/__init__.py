"""Reading and writing Megatron-LM launches: shell scripts, argument files and YAML, without running anything.

`sources` finds the words, `parse` types them by the tables of `known` and `ignored`, `architecture`, `computation` and
`parallelism` turn them into our objects, `launch` holds them together, and `write` is the way back. Nothing is imported
here: a plan writes without what it takes to read.
"""
