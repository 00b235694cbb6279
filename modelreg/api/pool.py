"""The descriptor pool of this package's messages.

It isn't protobuf's default one: there, the official ``cogment`` package registers files and messages of the same names,
and whichever of the two were imported second would fail.
"""

from __future__ import annotations

from google.protobuf.descriptor_pool import DescriptorPool

POOL = DescriptorPool()
