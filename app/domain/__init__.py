"""Pure words and rules: standard library and msgspec only."""
