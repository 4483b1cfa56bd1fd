"""The dense model as a teacher: run live, or replaced by its book, which holds its recorded answers."""

from .book import Book, open_book, write_book
from .config import BookConfig, Contents
from .draw import Draw
from .teachers import LiveTeacher, Teacher, as_teacher, at

__all__ = [
    "Book",
    "BookConfig",
    "Contents",
    "Draw",
    "LiveTeacher",
    "Teacher",
    "as_teacher",
    "at",
    "open_book",
    "write_book",
]
