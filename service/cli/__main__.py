"""`python -m service.cli` is `rldp`."""

from service.cli import main

main()
