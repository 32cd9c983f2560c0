"""Template of language thoughts: one fixed English sentence form, written and parsed here.

    The user says: "i lost my keys on the bus". A sad adult woman who coughs has lost something
    they need, so I will answer the cough.

The form is fixed so that a small model can be trained on it, and so that evaluation can parse the labels.
A calm voice is "neutral"; a thought without "who ..." has no sound event; a child has no gender.
"""

import re
from dataclasses import dataclass

EMOTION_ADJECTIVES = {
    "neutral": "calm",
    "happy": "happy",
    "sad": "sad",
    "angry": "angry",
    "fear": "frightened",
    "surprise": "surprised",
}
SPEAKER_NOUNS = {
    ("adult", "female"): "adult woman",
    ("adult", "male"): "adult man",
    ("old", "female"): "old woman",
    ("old", "male"): "old man",
    ("child", None): "child",
}
SOUND_EVENT_VERBS = {"cough": "coughs", "laugh": "laughs", "sigh": "sighs", "sneeze": "sneezes"}

# What the answer should do, by cue; at most three words each, {whom} counts as one.
RESPONSE_PLANS = {
    "neutral": "calmly help {whom}",
    "distress": "gently comfort {whom}",
    "angry": "calm {whom} down",
    "bright": "share the joy",
    "child": "reassure the child",
    "old": "patiently help {whom}",
    "cough": "answer the cough",
    "laugh": "enjoy the laugh",
    "sigh": "answer the sigh",
    "sneeze": "answer the sneeze",
}
_PERSON = {words: person for person, words in SPEAKER_NOUNS.items()}
_MOOD = {words: emotion for emotion, words in EMOTION_ADJECTIVES.items()}
_SOUND = {words: event for event, words in SOUND_EVENT_VERBS.items()}
_WHOM = {"female": "her", "male": "him", None: "them"}

_FORM = re.compile(
    r'^The user says: "(?P<text>.+?)"\.'
    r" An? (?P<mood>{moods}) (?P<person>{people})(?: who (?P<sound>{sounds}))?"
    r" (?P<summary>.+), so I will (?P<plan>.+)\.$".format(
        moods="|".join(EMOTION_ADJECTIVES.values()),
        people="|".join(SPEAKER_NOUNS.values()),
        sounds="|".join(SOUND_EVENT_VERBS.values()),
    )
)


@dataclass(frozen=True)
class DescribedUtterance:
    """Transcript and labels of an utterance; the values are those of the corpus record."""

    text: str
    age: str
    gender: str | None
    emotion: str
    sound_event: str | None


def write_thought(utterance: DescribedUtterance, summary: str, cue: str) -> str:
    """The language thought about an utterance; `summary` follows "The user", `cue` names the reply."""
    mood = EMOTION_ADJECTIVES[utterance.emotion]
    article = "An" if mood[0] in "aeiou" else "A"
    person = SPEAKER_NOUNS[utterance.age, utterance.gender]
    sound = f" who {SOUND_EVENT_VERBS[utterance.sound_event]}" if utterance.sound_event else ""
    plan = RESPONSE_PLANS[cue].format(whom=_WHOM[utterance.gender])
    return f'The user says: "{utterance.text}". {article} {mood} {person}{sound} {summary}, so I will {plan}.'


def read_thought(thought: str) -> DescribedUtterance | None:
    """The utterance that a thought describes, the reverse of `write_thought`; None for any other text."""
    found = _FORM.match(thought.strip())
    if found is None:
        return None
    age, gender = _PERSON[found["person"]]
    return DescribedUtterance(
        text=found["text"],
        age=age,
        gender=gender,
        emotion=_MOOD[found["mood"]],
        sound_event=_SOUND[found["sound"]] if found["sound"] else None,
    )
