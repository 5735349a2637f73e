"""A finished run in forms that others read: what runs it needs none of this package."""
