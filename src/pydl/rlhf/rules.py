"""Rules that stand for the person who says which of two texts is better."""

GOOD = """able allowed always basic best better clean clear complete consistent convenient correct easily easy efficient
equal exact explicit fast general good guaranteed important improved known legal natural new perfect possible ready
readable right safe same simple simpler simply special standard success successful suitable support supported true
useful usual valid well"""
BAD = """abnormal ambiguous bad broken cannot conflict delete deleted deprecated error errors exception exceptions
exhausted fail failed fails failure fatal forbidden illegal impossible incomplete incorrect inconsistent invalid lost
missing never no not none nothing obsolete problem problems raise raised raises restricted syntaxerror traceback
typeerror undefined unable unexpected unknown unsafe unsupported useless valueerror warning without wrong"""


def _whole(text):
    """The words of a text; the last one counts where it has ended, or is the only one."""
    words = text.split()
    return words[:-1] if len(words) > 1 and not text[-1].isspace() else words


def make_rule(name, text):
    """The function (response) -> number of the rule ``name``, one of :data:`RULES`; more is better.

    Args:
        text: what the model was trained on, whose words are the known ones.
    """
    return RULES[name](text)


def known_words(text):
    """The share of the words that the text knows; one that was cut off by the end counts by its beginning."""
    words = set(text.split())
    beginnings = {word[:length] for word in words for length in range(1, len(word) + 1)}

    def rule(response):
        found = response.split()
        whole = _whole(response)
        right = sum(word in words for word in whole)
        right += sum(word in beginnings for word in found[len(whole) :])
        return right / max(1, len(found))

    return rule


def long_words(text):
    """Letters a word."""

    def rule(response):
        words = _whole(response)
        return sum(map(len, words)) / max(1, len(words))

    return rule


def sentiment(text):
    """Good words less bad ones, of the lists above."""
    good, bad = set(GOOD.split()), set(BAD.split())

    def rule(response):
        words = _whole(response)
        return float(sum(word in good for word in words) - sum(word in bad for word in words))

    return rule


RULES = {"known": known_words, "long": long_words, "sentiment": sentiment}
