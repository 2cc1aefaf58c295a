"""What tools are about: names, descriptions and parameters that declare them, and what users ask of them."""

from demo import pools
from demo.tasks.tool_parts import Family, Param, between, clock, expression, message, one_of, topic

_CITY = Param(
    "city|location|place|town|city_name",
    "string",
    "The city|City name|Name of the city|Where|The place to look up",
    one_of(pools.CITIES),
)
_NAME = Param(
    "to|recipient|name|person|contact|user",
    "string",
    "Who gets it|The recipient|Name of the person|The receiver",
    one_of(pools.NAMES),
)
_DAY = Param("day|date|when", "string", "The day|Which day|Day of the week", one_of(pools.DAYS))
_ROOM = Param("room|location|where|area", "string", "The room|Which room|Name of the room", one_of(pools.ROOMS))


_UNIT = Param(
    "unit|units|scale",
    "string",
    "Temperature unit|The unit",
    one_of(["celsius", "fahrenheit"]),
    ("celsius", "fahrenheit"),
)

FAMILIES: tuple[Family, ...] = (
    Family(
        "weather",
        "get_weather|weather|fetch_weather|get_current_weather|current_weather|lookup_weather|weather_report|"
        "check_weather|getWeather|get_forecast",
        "Get the weather|Get the current weather in a city|Current weather|Weather for a place|Look up the weather|"
        "Returns the weather",
        (_CITY, _DAY, _UNIT),
        "What's the weather in {0}?|What is the weather in {0}?|How is the weather in {0}?|Weather in {0}?|"
        "Is it raining in {0}?|weather in {0}|"
        "What's the weather like in {0}?|Check the weather in {0}.|How warm is it in {0}?|"
        "What is the weather in {0} {1}?|What's the weather like in {0} {1}?|"
        "Tell me the weather in {0} in {2}.|What is the weather in {0} in {2}?|Give me the weather for {0}.|"
        "Do I need a coat in {0}?|What's the temperature in {0}?",
        (
            ("temperature|temp|degrees|temperature_c", between(-10, 40)),
            ("condition|conditions|sky|weather", one_of(pools.CONDITIONS)),
        ),
    ),
    Family(
        "time",
        "get_time|current_time|get_current_time|local_time|clock|time_in|getTime|world_clock",
        "Get the time|Get the local time in a city|Current time of a place|Local time|Tells the time",
        (_CITY,),
        "What time is it in {0}?|What's the time in {0}?|Time in {0}?|Tell me the time in {0}.|"
        "What is the local time in {0}?|How late is it in {0}?",
        (("time|local_time|clock", clock),),
    ),
    Family(
        "convert",
        "convert|convert_units|unit_converter|convert_currency|exchange|converter|convertUnits",
        "Convert a value|Convert between units|Convert an amount|Convert money or units",
        (
            Param(
                "amount|value|number|quantity", "number", "How much|The amount|The value to convert", between(1, 999)
            ),
            Param(
                "from|from_unit|source|from_currency",
                "string",
                "From which|The source|Unit to convert from",
                one_of(pools.CURRENCIES + pools.UNITS),
            ),
            Param(
                "to|to_unit|target|to_currency",
                "string",
                "To which|The target|Unit to convert to",
                one_of(pools.CURRENCIES + pools.UNITS),
            ),
        ),
        "Convert {0} {1} to {2}.|How much is {0} {1} in {2}?|What is {0} {1} in {2}?|Change {0} {1} into {2}.|"
        "{0} {1} to {2}|How many {2} are {0} {1}?",
        (("result|value|amount|converted", between(1, 999)),),
    ),
    Family(
        "calculator",
        "calculator|calculate|evaluate|compute|calc|math|run_calculation",
        "Calculate an expression|Evaluate arithmetic|A calculator|Compute a result|Do math",
        (
            Param(
                "expression|expr|formula|input",
                "string",
                "The expression|What to compute|Arithmetic expression",
                expression,
            ),
        ),
        "What is {0}?|Calculate {0}.|Compute {0}|{0}|How much is {0}?|What's {0}?|Use the calculator: {0}|"
        "Please calculate {0}.",
        (("result|value|answer", between(1, 999)),),
    ),
    Family(
        "search",
        "search|web_search|search_web|find|search_docs|lookup|google|searchWeb|search_places",
        "Search the web|Find pages|Search for something|Look something up|Full text search",
        (
            Param("query|q|text|search_query|keywords", "string", "What to search|The query|Search terms", topic),
            Param(
                "limit|top_k|max_results|count", "integer", "How many results|Number of results|Maximum", between(1, 20)
            ),
        ),
        "Search for {0}.|Find {0}.|Search the web for {0}.|Look up {0}.|Find me {0}|Search {0}|"
        "Show me {1} results for {0}.|Find {1} results for {0}.|Search for {0} and give me {1} results.",
        (("title|name|top|result", one_of(pools.THINGS)), ("count|total|hits|results", between(1, 999))),
    ),
    Family(
        "message",
        "send_message|message|send_text|notify|send_sms|text_message|sendMessage|send_chat",
        "Send a message|Send a text to someone|Message a person|Notify someone",
        (_NAME, Param("message|text|body|content|msg", "string", "The text|What to say|The message", message)),
        'Send a message to {0}: {1}.|Tell {0} that {1}.|Send "{1}" to {0}.|Text {0}: {1}|Message {0} that {1}.|'
        'Write to {0}: "{1}"|Let {0} know that {1}.',
        (("status|state", one_of(["sent", "delivered", "queued"])), ("id|message_id", between(1, 999))),
    ),
    Family(
        "email",
        "send_email|email|mail|send_mail|sendEmail|compose_email",
        "Send an email|Email someone|Write an email|Send mail",
        (
            _NAME,
            Param("subject|title|about", "string", "The subject|Subject line|What it is about", one_of(pools.EVENTS)),
            Param("body|text|content|message", "string", "The text|Body of the mail|What to write", message),
        ),
        'Email {0} about the {1}: {2}.|Send an email to {0} with subject "{1}" and body "{2}".|'
        "Write an email to {0} about the {1} that says {2}.",
        (("status|state", one_of(["sent", "delivered", "queued"])),),
    ),
    Family(
        "reminder",
        "set_reminder|add_reminder|remind|create_reminder|reminder|remind_me",
        "Set a reminder|Remind the user|Add a reminder|Create a reminder",
        (
            Param("task|text|title|what|note", "string", "What to do|The task|What to remember", one_of(pools.TASKS)),
            Param("time|at|when|hour", "string", "When|The time|Time of day", clock),
        ),
        "Remind me to {0} at {1}.|Set a reminder to {0} at {1}.|At {1}, remind me to {0}.|"
        "Please remind me at {1} to {0}.|I must {0} at {1}, remind me.",
        (("status|state", one_of(["ok", "set", "saved"])),),
    ),
    Family(
        "calendar",
        "create_event|add_event|schedule|schedule_meeting|add_to_calendar|createEvent|book_event",
        "Add a calendar event|Create an event|Schedule a meeting",
        (
            Param("title|event|name|what", "string", "The event|Title of the event|What happens", one_of(pools.EVENTS)),
            _DAY,
            Param("time|at|start|start_time", "string", "Start time|When it starts|Time of day", clock),
        ),
        "Schedule a {0} on {1} at {2}.|Add a {0} on {1} at {2} to my calendar.|Create an event: {0}, {1}, {2}.|"
        "Put a {0} on {1} at {2}.|Plan a {0} for {1} at {2}.",
        (("status|state", one_of(["ok", "saved", "created"])), ("id|event_id", between(1, 999))),
    ),
    Family(
        "alarm",
        "set_alarm|alarm|add_alarm|wake_up|create_alarm",
        "Set an alarm|Wake the user|Add an alarm",
        (Param("time|at|when|hour", "string", "When|The time|Time of day", clock),),
        "Set an alarm for {0}.|Wake me at {0}.|Alarm at {0}.|Wake me up at {0}.|I need an alarm at {0}.",
        (("status|state", one_of(["ok", "set", "saved"])),),
    ),
    Family(
        "stock",
        "get_stock_price|stock_price|get_quote|stock|quote|getStockPrice|share_price",
        "Get a stock price|Price of a share|Stock quote",
        (
            Param(
                "symbol|ticker|company|stock",
                "string",
                "The symbol|Company|Which stock",
                one_of(pools.SYMBOLS + pools.COMPANIES),
            ),
        ),
        "What is the stock price of {0}?|How is {0} doing?|Price of {0} stock?|What does a share of {0} cost?|"
        "Stock price of {0}|Get me a quote for {0}.|What's {0} trading at?",
        (("price|value|quote", between(10, 999)), ("currency|unit", one_of(pools.CURRENCIES))),
    ),
    Family(
        "translate",
        "translate|translate_text|translator|translation|translateText",
        "Translate a text|Translate words|Translate into a language",
        (
            Param("text|input|phrase|content", "string", "The text|What to translate|Text to translate", message),
            Param(
                "language|target|to|target_language|lang",
                "string",
                "Into which language|Target language|The language",
                one_of(pools.LANGUAGES),
            ),
        ),
        'Translate "{0}" into {1}.|Translate "{0}" to {1}.|How do you say "{0}" in {1}?|What is "{0}" in {1}?|'
        'Say "{0}" in {1}.',
        (),
    ),
    Family(
        "music",
        "play_music|play_song|play|music|playMusic|start_music",
        "Play music|Play a song|Play something by an artist",
        (Param("artist|singer|by|band", "string", "The artist|Who sings|Name of the artist", one_of(pools.SINGERS)),),
        "Play something by {0}.|Play {0}.|Play a song by {0}.|I want to hear {0}.|Put on some {0}.|Play music by {0}",
        (("title|song|now_playing", one_of(pools.WORDS)),),
    ),
    Family(
        "light",
        "set_light|turn_light|light|switch_light|lights|setLight|control_light",
        "Switch a light|Turn lights on or off|Control the lights",
        (
            _ROOM,
            Param(
                "state|mode|action|power",
                "string",
                "On or off|What to do|The state",
                one_of(["on", "off"]),
                ("on", "off"),
            ),
        ),
        "Turn {1} the light in the {0}.|Switch {1} the lights in the {0}.|Turn the {0} lights {1}.|"
        "Lights {1} in the {0}.|Switch the light in the {0} {1}.",
        (("status|state", one_of(["ok", "done"])),),
    ),
    Family(
        "heating",
        "set_temperature|thermostat|heating|set_thermostat|setTemperature",
        "Set the temperature|Control the heating|Set the thermostat",
        (
            _ROOM,
            Param(
                "degrees|temperature|value|target", "integer", "Degrees|Target temperature|How warm", between(15, 28)
            ),
        ),
        "Set the {0} to {1} degrees.|Make it {1} degrees in the {0}.|Heat the {0} to {1} degrees.|"
        "Set the temperature in the {0} to {1}.|I want {1} degrees in the {0}.",
        (("status|state", one_of(["ok", "done"])),),
    ),
    Family(
        "table",
        "book_table|reserve_table|make_reservation|reserve|book_restaurant|bookTable",
        "Book a table|Reserve a table|Make a restaurant reservation",
        (
            Param(
                "people|guests|party_size|seats",
                "integer",
                "How many people|Number of guests|Party size",
                between(2, 12),
            ),
            _DAY,
            Param("time|at|hour", "string", "When|The time|Time of day", clock),
        ),
        "Book a table for {0} on {1} at {2}.|Reserve a table for {0} people on {1} at {2}.|"
        "I need a table for {0} on {1} at {2}.|Table for {0}, {1}, {2}.",
        (("status|state", one_of(["confirmed", "booked"])), ("code|id", between(100, 999))),
    ),
    Family(
        "population",
        "get_population|population|country_population|lookup_population",
        "Population of a country|Get how many people live in a country",
        (
            Param(
                "country|name|nation",
                "string",
                "The country|Which country|Name of the country",
                one_of(pools.COUNTRIES),
            ),
        ),
        "What is the population of {0}?|How many people live in {0}?|Population of {0}?|"
        "How large is the population of {0}?",
        (("population|people|millions", between(1, 999)),),
    ),
    Family(
        "define",
        "define|define_word|dictionary|lookup_word|get_definition",
        "Define a word|Look up a word|Dictionary",
        (Param("word|term|text|entry", "string", "The word|Which word|The term", one_of(pools.WORDS)),),
        'What does "{0}" mean?|Define {0}.|Look up the word {0}.|Give me the definition of {0}.|'
        'What is the meaning of "{0}"?|Define the word "{0}".',
        (),
    ),
    Family(
        "dice",
        "roll_dice|dice|roll|roll_die|rollDice",
        "Roll dice|Throw dice|Roll some dice",
        (
            Param("count|number|dice|n", "integer", "How many dice|Number of dice", between(1, 9)),
            Param("sides|faces|max", "integer", "Sides of a die|Number of sides", between(4, 20)),
        ),
        "Roll {0} dice with {1} sides.|Throw {0} dice with {1} sides each.|Roll {0} dice.|Throw {0} dice.",
        (("total|sum|result", between(1, 99)),),
    ),
    Family(
        "route",
        "get_route|route|directions|get_directions|navigate|plan_route",
        "Find a route|Directions between two places|Plan a trip",
        (
            Param("start|from|origin|from_city", "string", "The start|Where it begins|Origin", one_of(pools.CITIES)),
            Param("end|to|destination|to_city", "string", "The end|Where to go|Destination", one_of(pools.CITIES)),
        ),
        "How do I get from {0} to {1}?|Route from {0} to {1}.|Directions from {0} to {1}|"
        "How far is it from {0} to {1}?|Take me from {0} to {1}.",
        (("distance|km|kilometers", between(10, 999)), ("hours|duration|time", between(1, 20))),
    ),
    Family(
        "flight",
        "book_flight|find_flight|search_flights|flights|bookFlight",
        "Book a flight|Find flights|Search for flights",
        (
            Param(
                "from|origin|start|from_city", "string", "Where it starts|Departure city|Origin", one_of(pools.CITIES)
            ),
            Param(
                "to|destination|end|to_city", "string", "Where it goes|Arrival city|Destination", one_of(pools.CITIES)
            ),
            _DAY,
        ),
        "Book a flight from {0} to {1} on {2}.|Find a flight from {0} to {1} on {2}.|"
        "I want to fly from {0} to {1} on {2}.|Flights from {0} to {1} on {2}?|Find flights from {0} to {1}.",
        (("flight|number|code", between(100, 999)), ("price|cost", between(50, 999))),
    ),
)
