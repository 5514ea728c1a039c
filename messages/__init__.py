"""Everything that crosses a boundary, typed: messages between actors, the spec, the API's bodies."""
