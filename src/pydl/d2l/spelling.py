"""Numbers in words, English and French: pairs of sentences for translation that need no download."""

import random

_EN = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
_EN_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_FR = [
    "zéro",
    "un",
    "deux",
    "trois",
    "quatre",
    "cinq",
    "six",
    "sept",
    "huit",
    "neuf",
    "dix",
    "onze",
    "douze",
    "treize",
    "quatorze",
    "quinze",
    "seize",
    "dix-sept",
    "dix-huit",
    "dix-neuf",
]
_FR_TENS = ["vingt", "trente", "quarante", "cinquante", "soixante"]


def english(number):
    """The words for a number from 0 to 999,999: 121 is "one hundred twenty one"."""
    if number < 20:
        return _EN[number]
    if number < 100:
        return _joined(_EN_TENS[number // 10 - 2], number % 10, english)
    for size, word in ((1000, "thousand"), (100, "hundred")):
        if number >= size:
            return _joined(f"{english(number // size)} {word}", number % size, english)


def french(number):
    """The words for a number from 0 to 999,999, tens and ones apart: 271 is "deux cent soixante et onze".

    Numbers are written as before 1990, without hyphens except from 17 to 19.
    """
    if number < 20:
        return _FR[number]
    if number < 60:
        return _french_tens(_FR_TENS[number // 10 - 2], number % 10)
    if number < 80:  # sixty and up to nineteen
        return _french_tens("soixante", number - 60)
    if number < 100:  # four twenties and up to nineteen
        return "quatre vingts" if number == 80 else f"quatre vingt {french(number - 80)}"
    for size, word in ((1000, "mille"), (100, "cent")):
        if number >= size:
            count, rest = divmod(number, size)
            if count == 1:
                head = word
            else:
                plural = "s" if word == "cent" and not rest else ""
                head = f"{_before_mille(count) if size == 1000 else french(count)} {word}{plural}"
            return _joined(head, rest, french)


def _before_mille(count):
    """cents and vingts lose their s there."""
    words = french(count)
    return words.removesuffix("s") if words.endswith((" cents", " vingts")) else words


def _french_tens(tens, ones):
    return _joined(f"{tens} et" if ones in (1, 11) else tens, ones, french)


def _joined(head, rest, words):
    return f"{head} {words(rest)}" if rest else head


def pairs(count=10_000):
    """Lines "english<tab>french" of the numbers below ``count``, in one random order."""
    numbers = list(range(count))
    random.Random(0).shuffle(numbers)
    return "".join(f"{english(number)} .\t{french(number)} .\n" for number in numbers)
