"""Devices and links: they are made here, and programs are started on them."""
