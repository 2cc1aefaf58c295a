"""The built-in demo model: how its conversations are generated, and how it is trained, packed and checked."""
