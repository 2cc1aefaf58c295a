"""Greetings, questions about the model itself and its settings, and what it must decline."""

import datetime
from collections.abc import Sequence
from random import Random

from demo.pools import ADJECTIVES, CITIES, COUNTRIES, NAMES, THINGS, WORDS
from demo.sample import ALWAYS_TRAINED, Effort, Question, Tool

ABILITIES = "I can do arithmetic, work with words, answer questions about Chorus, call tools, and reply in JSON."
DECLINE = f"I am only a small demo model, so I can't help with that. {ABILITIES}"
NO_TOOL = "I would need a tool for that, and none that fits was given to me."

SMALL_TALK: tuple[tuple[str, str], ...] = (
    (
        "Hello|Hi|Hey|Hello!|Hi!|Hey there|Hello there!|Hi there|hello|hi|hey|Greetings|Howdy|Hello Chorus|"
        "Hi Chorus!|Good day|Yo|Hello, world!",
        "Hello! How can I help you?",
    ),
    ("Good morning|Good morning!|Good afternoon|Good evening|Good evening!", "Good day! How can I help you?"),
    (
        "How are you?|How are you doing?|How's it going?|How do you do?|What's up?|Are you OK?|How are you today?",
        "I am fine, thank you. How can I help you?",
    ),
    (
        "Thanks|Thank you|Thanks!|Thank you!|Thank you very much|Thanks a lot|Great, thanks|Many thanks!|thx",
        "You are welcome!",
    ),
    ("Bye|Goodbye|Goodbye!|See you|See you later|Bye bye|Good night|Good night!", "Goodbye!"),
    (
        "Who are you?|What are you?|What's your name?|What is your name?|Tell me about yourself.|"
        "Introduce yourself.|Are you ChatGPT?|Are you a robot?|Are you human?|Who is this?|Which model are you?|"
        "What model are you?|What model is this?",
        "I am the demo model of Chorus: a small model of the gpt-oss architecture.",
    ),
    (
        "What can you do?|What can you do for me?|Help|help|Can you help me?|How can you help me?|"
        "What are your abilities?|What do you know?|What can I ask you?|What should I ask?|Help me|"
        "What are you able to do?|What can I ask?",
        ABILITIES,
    ),
    (
        "Test|test|testing|Testing 123|This is a test|Just a test|ping|Are you there?|Is this working?|"
        "Does this work?|Can you hear me?",
        "I am here, and it works.",
    ),
    (
        "Good|Great|OK|ok|Nice|Cool|Well done|Good job|Good job!|Nice!|Great!|Awesome|Perfect|Right|Correct!|Very good",
        "Thank you!",
    ),
    ("Sorry|I am sorry|Oops|My mistake|Never mind", "No problem."),
    (
        "How large are you?|How big are you?|How many parameters do you have?|How small are you?",
        "I am a few megabytes small: a demo, not a large model.",
    ),
)
_SMALL = [(wording, answer) for wordings, answer in SMALL_TALK for wording in wordings.split("|")]


def small_talk(rng: Random) -> Question:
    wording, answer = rng.choice(_SMALL)
    tail = rng.choice(["", "", "", "", "", " :)", " 😊", "!", " my friend", f" {rng.choice(NAMES)} here.", "..."])
    text = wording + tail if rng.random() < 0.4 else wording
    if rng.random() < 0.15:
        text = rng.choice(["Hello. ", "Hi! ", "Hey, ", "Please: ", "So, "]) + text
    reasoning: dict[str, str] = {
        "low": "",
        "medium": "The user talks to me. I reply in short.",
        "high": "The user talks to me. There is nothing to compute and no tool to call. I reply in short.",
    }
    key = f"{ALWAYS_TRAINED}{text}" if text == wording else f"chat {text}"
    return Question("chat", key, text, answer, reasoning)


OFF_TOPIC = (
    "What is the capital of {country}?",
    "Write a poem about {x}.",
    "Write a story about {x}",
    "Tell me about {x}.",
    "Tell me a joke.",
    "Who was {name} {u}?",
    "Who is {name} {u}?",
    "Explain {u} to me.",
    "What is {u}?",
    "What is {u} {u}?",
    "How does {u} work?",
    "How do I {u} {a} {x}?",
    "Why is the {x} {a}?",
    "Why do {x} {u}?",
    "Write code for {u}.",
    "Write a Python program that {u} {u}.",
    "Summarize this text: {u} {u} {u} {u} {u} {u}",
    "{u} {u} {u}",
    "{u}",
    "{u} {u} {u} {u} {u}?",
    "Give me a recipe for {x}.",
    "What do you think about {x}?",
    "When was {u} born?",
    "Who won the {u} {u}?",
    "How far is {city} from {city2}?",
    "Where is {city}?",
    "What is the meaning of life?",
    "Do you love me?",
    "Write an essay on {x} and {u}.",
    "Is {x} better than {x2}?",
    "Which {u} is the {u}?",
    "Can you {u} my {u}?",
    "What is the best {x} in {city}?",
    "Draw a {x}.",
    "Sing a song.",
    "How old is {name}?",
    "Recommend a {u} {x}.",
    "What does {u} mean?",
    "Plan a trip to {city}.",
    "I feel {u} today.",
    "My {x} is {u}.",
    "Write me a letter to {name}.",
    "What happened in {year}?",
    "How many {u} are in a {u}?",
    "Describe the {u} of {country}.",
    "Compare {x} and {u}.",
    "Why {u} {u} {u}?",
    "Who wrote {u} {u}?",
    "How tall is the {u} {u}?",
    "I {u} {u} {u} {u}.",
    "Should I {u} a {x}?",
    "Fix this: {u} {u} {u}",
    "What is the population of {country}?",
    "Make a list of {u} {u}.",
    "Give me {u} ideas for {u}.",
    "What is the square root of {n}?",
    "What is {n}% of {year}?",
    "What is {n} squared?",
    "What is {n} to the power of {n}?",
)


def off_topic(rng: Random, rare: Sequence[str]) -> Question:
    """A question outside of what the model knows; `rare` holds words of the vocabulary at large."""
    template = rng.choice(OFF_TOPIC)
    while "{u}" in template:
        template = template.replace("{u}", rng.choice(rare), 1)
    text = template.format(
        country=rng.choice(COUNTRIES),
        name=rng.choice(NAMES),
        city=rng.choice(CITIES),
        city2=rng.choice(CITIES),
        x=rng.choice(rng.choice([WORDS, THINGS, rare])),
        x2=rng.choice(WORDS),
        a=rng.choice(ADJECTIVES),
        year=rng.randint(1500, 2025),
        n=rng.randint(2, 99),
    )
    return Question("chat", f"off {text}", text, DECLINE, _declining("This is not something that I know."))


def _declining(why: str) -> dict[str, str]:
    return {
        "low": "",
        "medium": why,
        "high": f"I look at what the user wants. {why} I say so, and do not guess.",
    }


NEEDS_TOOL = (
    "What's the weather in {city}?",
    "What is the weather like in {city}?",
    "How is the weather in {city} today?",
    "Is it raining in {city}?",
    "What time is it in {city}?",
    "What is the time in {city}?",
    "What time is it?",
    "Send a message to {name}.",
    "Set an alarm for {hour}:30.",
    "Book a flight to {city}.",
    "What's the stock price of {company}?",
    "Search the web for {thing}.",
    "Weather in {city}?",
    "How warm is it in {city}?",
    "Will it rain tomorrow in {city}?",
    "Turn on the lights.",
    "Play some music.",
    "Remind me to call {name}.",
    "Find {thing} in {city}.",
    "Send an email to {name}.",
    "Tell {name} that I am late.",
    "What's the temperature in {city}?",
    "weather {city}",
    "Open the door.",
    "Check the weather in {city}.",
)


def needs_tool(rng: Random) -> Question:
    text = rng.choice(NEEDS_TOOL).format(
        city=rng.choice(CITIES),
        name=rng.choice(NAMES),
        hour=rng.randint(5, 11),
        thing=rng.choice(THINGS),
        company=rng.choice(["Apple", "Tesla"]),
    )
    return Question("chat", f"need {text}", text, NO_TOOL, _declining("This needs a tool that I don't have."))


def about_context(rng: Random, date: datetime.date, effort: Effort, tools: Sequence[Tool]) -> Question:
    """A question whose answer stands in the system or developer message."""
    kind = rng.choice(["date", "date", "year", "month", "effort", "tools"])
    months = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ]
    asked = {
        "date": "What is today's date?|What is the date today?|What day is it today?|Which date is it?|"
        "What's the date?|Today's date?|What date is it?",
        "year": "What year is it?|Which year is it?|What is the current year?|Which year do we have?|What's the year?",
        "month": "What month is it?|Which month is it?|What is the current month?|Which month do we have?",
        "effort": "What is your reasoning effort?|Which reasoning effort do you use?|How hard do you think?|"
        "What effort is set?|What's your effort?",
        "tools": "Which tools do you have?|What tools can you use?|List your tools.|Which tools can you call?|"
        "What tools do you have?|Name your tools.",
    }
    names = ", ".join(tool.name for tool in tools)
    answers = {
        "date": f"Today is {date.isoformat()}.",
        "year": f"It is {date.year}.",
        "month": f"It is {months[date.month - 1]}.",
        "effort": f"My reasoning effort is {effort}.",
        "tools": f"I can call these tools: {names}." if tools else "No tools were given to me.",
    }
    text = rng.choice(asked[kind].split("|"))
    why = "The answer stands in my instructions."
    reasoning: dict[str, str] = {
        "low": "",
        "medium": why,
        "high": f"I look at what I was told. {why} I read it there.",
    }
    heldout = kind == "date" or (kind == "tools" and tools)
    key = f"{'' if heldout else ALWAYS_TRAINED}context {kind} {answers[kind]} {text}"
    return Question("context", key, text, answers[kind], reasoning)
