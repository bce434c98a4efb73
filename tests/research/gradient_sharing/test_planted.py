"""The planted conflict of headroom: which words are exchanged, and which utterances are in which half."""

from sprachbund.research.gradient_sharing.planted import NUM_SWAPPED, Exchange, in_halves


def test_frequent_words_take_the_place_of_each_other() -> None:
    exchange = Exchange([("en", "the cat and the dog"), ("en", "the cat and a bird"), ("de", "der Hund")])
    # the 3, and 2, cat 2, a, bird and dog 1; equally frequent ones by the alphabet
    assert exchange("the cat and a bird dog", "en") == "and a the cat dog bird"
    assert exchange("the fish", "en") == "and fish"
    assert exchange(exchange("the cat and a bird dog", "en"), "en") == "the cat and a bird dog"
    assert exchange("the Hund", "de") == "the der"
    assert exchange("the", "fr") == "the"


def test_languages_without_spaces_exchange_characters() -> None:
    exchange = Exchange([("zh", "好好学 习")])
    assert exchange("好好 学习", "zh") == "习习学好"


def test_only_so_many_words_are_exchanged() -> None:
    words = [f"w{number:02d}" for number in range(NUM_SWAPPED + 10)]
    text = " ".join(word for place, word in enumerate(words) for _ in range(len(words) - place))
    exchange = Exchange([("en", text)])
    changed = [exchange(word, "en") != word for word in words]
    assert changed == [True] * NUM_SWAPPED + [False] * 10


def test_halves_are_random_of_equal_size_and_do_not_follow_the_order_of_the_examples() -> None:
    examples = {"de": list(range(61)), "en": list(range(100, 140))}
    halves = in_halves(examples, lambda value: -value, seed=3)
    assert list(halves) == ["de", "de*", "en", "en*"]
    assert [len(own) for own in halves.values()] == [30, 30, 20, 20]
    kept, changed = halves["en"], [-value for value in halves["en*"]]
    assert sorted(kept + changed) == examples["en"]
    # Languages written take turns, so every other example would be of the same ones.
    assert len({value % 2 for value in kept}) == len({value % 2 for value in changed}) == 2
    assert halves == in_halves(examples, lambda value: -value, seed=3)
    assert halves != in_halves(examples, lambda value: -value, seed=4)
