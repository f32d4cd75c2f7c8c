"""ggml's own encoders and decoders on an NVIDIA card.

The pinned tree's text is taken by name, wrapped into one small program a type and compiled for the card that is
there, by the compiler that torch's wheels bring along. Nothing of ggml is kept here.

    text       functions, tables and structs out of ggml's files
    program    a type's program out of them
    grids      the tables that the iq types search in
    compiler   program -> machine code, kept in hubbot's cache
    card       loading and launching it
    codec      a type that was seen to give ggml's bytes here, or the reason why not
    rows       some rows through a type and back
    queue      a block's tensors through all its types at once
"""
