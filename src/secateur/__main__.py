"""`python -m secateur`, which a launcher of several processes needs."""

from .cli import main

main()
