"""Private interfaces of other libraries that poa_hf uses (docs/private_interfaces.md) are still as it needs them.

Each test fails with a sentence that says which module to mend when a library changes.
"""
