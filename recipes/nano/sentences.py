"""What is said in the `commands` corpus: a small grammar of voice-assistant commands and plain sentences.

Slots are filled independently and uniformly, so that a word is hard to guess from its neighbours: a decoder
that ignores the audio gains little. `sentences(n, seed)` gives distinct sentences; `salads(n, seed)` gives
random word strings, for training only, which no grammar explains at all.
"""

import itertools
import random
import re
from collections.abc import Iterator

WORDS: dict[str, str] = {
    "room": "kitchen bedroom bathroom garage office hallway basement attic garden balcony library studio"
    " nursery",
    "device": "lamp fan heater camera speaker radio television printer oven fridge kettle curtain window"
    " door",
    "colour": "red blue green yellow purple orange white black brown pink silver golden",
    "number": "one two three four five six seven eight nine ten eleven twelve fifteen twenty thirty forty"
    " fifty sixty seventy eighty ninety",
    "unit": "seconds minutes hours days weeks months",
    "person": "alice robert maria daniel sophie peter laura michael emma thomas julia martin helen victor"
    " nora oscar",
    "relation": "mother father brother sister uncle aunt cousin doctor teacher neighbour manager lawyer",
    "thing": "parcel book table chair bottle basket hammer ladder letter picture pillow blanket candle"
    " mirror bucket jacket umbrella wallet guitar bicycle suitcase newspaper carpet puzzle trumpet",
    "animal": "dog cat horse rabbit tiger monkey elephant chicken goat turtle pigeon donkey",
    "adjective": "old new small large heavy broken empty clean dirty cheap strange quiet wooden plastic round"
    " narrow pretty famous",
    "place": "station airport market museum hospital school church bridge river mountain island village"
    " harbour castle restaurant pharmacy",
    "food": "bread butter cheese coffee sugar pepper tomato potato banana apple lemon salad chocolate"
    " honey rice soup",
    "song": "jazz opera classical country folk techno blues",
    "day": "monday tuesday wednesday thursday friday saturday sunday tomorrow tonight today",
    "month": "january february march april may june july august september october november december",
    "weather": "rainy sunny cloudy windy snowy foggy stormy",
    "act": "open close lock unlock start stop pause resume check clean repair paint move lift carry hide",
    "past": "bought sold found lost painted repaired opened carried dropped borrowed noticed promised",
    "where": "under behind beside above near inside",
    "adverb": "slowly quickly quietly carefully again now later together",
    "topic": "weather traffic football history science cooking travel politics music",
}
SLOTS = {name: words.split() for name, words in WORDS.items()}

TEMPLATES = """
turn on the {colour} {device} in the {room}
turn off the {room} {device}
set the {room} {device} to {number}
set a timer for {number} {unit}
wake me in {number} {unit} on {day}
{act} the {adjective} {thing} {adverb}
{act} the {room} {device} {adverb}
please {act} the {device}
put the {colour} {thing} {where} the {adjective} {thing}
move {number} {thing}s {where} the {place}
call {person} on {day}
call my {relation} in {number} {unit}
send a message to {person} about {topic}
tell my {relation} about the {adjective} {animal}
remind {person} to {act} the {thing}
play some {song} in the {room}
play {song} music for {number} {unit}
add {number} {food} and {food} to my list
buy {food} {food} and {food} on {day}
how far is the {place} from the {place}
where is the {adjective} {thing}
is it {weather} in {month}
will it be {weather} on {day}
what is {number} plus {number}
what is {number} times {number} minus {number}
find a {adjective} {place} near the {place}
show me the {topic} news for {day}
read the {adjective} {thing} from {person}
{person} {past} a {colour} {thing} near the {place}
my {relation} {past} the {adjective} {animal}
the {animal} is {where} the {colour} {thing}
the {colour} {animal} moved {adverb}
{person} and {person} {past} {number} {animal}s
they {past} {food} at the {place} on {day}
we need {food} for {number} {animal}s
she likes {food} with {food}
he was in {month} at the {adjective} {place}
book a table for {number} on {day}
the {device} costs {number} {number}
""".strip().splitlines()

# The grammar's own words, for the word list and the salads; plural forms are made by the templates above.
VOCABULARY = sorted(
    {word for words in SLOTS.values() for word in words}
    | set(re.sub(r"\{\w+\}s?", " ", " ".join(TEMPLATES)).split())
    | {f"{word}s" for word in SLOTS["thing"] + SLOTS["animal"]}
)


def fill(template: str, rng: random.Random) -> str:
    """One sentence from a template; a slot that occurs twice gets two different words."""
    used: set[str] = set()

    def word(match: re.Match[str]) -> str:
        choice = rng.choice([w for w in SLOTS[match[1]] if w not in used])
        used.add(choice)
        return choice

    return re.sub(r"\{(\w+)\}", word, template)


def sentences(count: int, seed: int, exclude: frozenset[str] = frozenset()) -> list[str]:
    """`count` distinct sentences that are not in `exclude`, templates in turn until they have nothing new to
    say."""
    rng, seen, out = random.Random(seed), set(exclude), []
    for template in itertools.cycle(TEMPLATES):
        if len(out) == count:
            break
        text = fill(template, rng)
        if text not in seen:
            seen.add(text)
            out.append(text)
    rng.shuffle(out)
    return out


def salads(count: int, seed: int, longest: int = 5) -> Iterator[str]:
    """Random word strings of 1 to `longest` words, every word of the vocabulary equally often."""
    rng = random.Random(seed)
    pool: list[str] = []
    for _ in range(count):
        length = rng.randint(1, longest)
        while len(pool) < length:
            pool = [*pool, *rng.sample(VOCABULARY, len(VOCABULARY))]
        yield " ".join(pool.pop() for _ in range(length))
