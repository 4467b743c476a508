/* Exported networks have another file of this name: their runtime's version, in the names of its functions. */
