"""What Chorus is: questions a newcomer asks, each with several wordings and one answer."""

from random import Random

from demo.sample import ALWAYS_TRAINED, Question

# Each entry: the wordings, parted by |, then the answer.
FACTS: tuple[tuple[str, str], ...] = (
    (
        "What is Chorus?|What's Chorus?|Tell me about Chorus.|Explain Chorus.|Describe Chorus.|"
        "What does Chorus do?|What is this?|chorus?|What is Chorus for?",
        "Chorus is a serving cluster for OpenAI's gpt-oss models. Ray Serve places its parts, a gateway speaks "
        "harmony, and workers run the model.",
    ),
    (
        "What is harmony?|What is the harmony format?|What's harmony?|Explain harmony.|"
        "Tell me about the harmony format.|What does harmony mean?",
        "Harmony is the message format of gpt-oss. A conversation is a list of messages with a role, a channel and "
        "a text, marked by special tokens.",
    ),
    (
        "Which channels does harmony have?|What are the channels?|What channels are there?|"
        "Name the harmony channels.|Which channels are there in harmony?|List the channels of harmony.",
        "Harmony has three channels: analysis for reasoning, commentary for tool calls, and final for the answer.",
    ),
    (
        "What is the analysis channel?|What is the analysis channel for?|What goes on the analysis channel?|"
        "Where does the reasoning go?",
        "The analysis channel carries the model's reasoning. It is not meant for end users.",
    ),
    (
        "What is the commentary channel?|What is the commentary channel for?|What goes on the commentary channel?|"
        "Where do tool calls go?",
        "The commentary channel carries tool calls and short notes before them.",
    ),
    (
        "What is the final channel?|What is the final channel for?|What goes on the final channel?|"
        "Where does the answer go?",
        "The final channel carries the answer that the user sees.",
    ),
    (
        "Which license does Chorus have?|What is the license of Chorus?|What license is Chorus under?|"
        "Is Chorus open source?|How is Chorus licensed?|Is Chorus free?",
        "Chorus is open source under the Apache 2.0 license.",
    ),
    (
        "What is MXFP4?|What does MXFP4 mean?|Explain MXFP4.|What's MXFP4?|Tell me about MXFP4.|"
        "What is the MXFP4 format?",
        "MXFP4 is a 4-bit number format. 32 values share one scale, so an expert weight takes about 4.25 bits.",
    ),
    (
        "What is Ray Serve?|Why does Chorus use Ray Serve?|What does Ray Serve do in Chorus?|"
        "What does Ray do in Chorus?|What is Ray Serve for?",
        "Ray Serve places the gateways and workers of Chorus on machines, restarts them when they fail, and scales "
        "them.",
    ),
    (
        "Which models does Chorus serve?|What models can Chorus run?|Which models are supported?|"
        "What models does Chorus support?|Which models can I use with Chorus?",
        "Chorus serves gpt-oss-20b, gpt-oss-120b, and fine-tuned checkpoints of the same architecture.",
    ),
    (
        "What is gpt-oss?|What's gpt-oss?|Tell me about gpt-oss.|Explain gpt-oss.|What are the gpt-oss models?",
        "gpt-oss is a family of open-weight models by OpenAI: gpt-oss-20b and gpt-oss-120b. They are mixtures of "
        "experts.",
    ),
    (
        "How do I start Chorus?|How do I run Chorus?|How can I start Chorus?|How do I start the server?|"
        "How do I launch Chorus?|How do I use Chorus?",
        "Run chorus serve. It starts the cluster with the demo model and prints its addresses.",
    ),
    (
        "How do I serve my own model?|How do I serve a checkpoint?|How do I load my own model?|"
        "How can I use another model?|How do I serve my own checkpoint?",
        "Run chorus serve --model PATH with the folder of your checkpoint.",
    ),
    (
        "How do I chat in the terminal?|How do I chat with the model?|How can I chat?|"
        "How do I ask a question in the terminal?",
        "Run chorus chat with your question in quotes. The answer streams in the terminal.",
    ),
    (
        "What is the gateway?|What does the gateway do?|What is the gateway for?|Explain the gateway.|"
        "What's the gateway in Chorus?",
        "The gateway checks requests, renders conversations to tokens, sends them to a worker, and parses what the "
        "model writes.",
    ),
    (
        "What is a worker?|What does a worker do?|What do the workers do?|Explain the workers.|"
        "What's a worker in Chorus?",
        "A worker runs one engine. It takes token ids, runs the model, and sends token ids back.",
    ),
    (
        "What is the engine?|What does the engine do?|Explain the engine.|What's the engine in Chorus?",
        "The engine schedules requests into batches, runs the model step by step, and samples the next tokens.",
    ),
    (
        "What happens when a worker dies?|What if a worker crashes?|What happens if a worker fails?|"
        "Does Chorus survive a crash?|What happens when a worker is killed?",
        "The gateway sends the prompt and the tokens so far to another worker, and the stream goes on.",
    ),
    (
        "Which protocols does Chorus speak?|What APIs does Chorus have?|Which API does Chorus offer?|"
        "What protocols are supported?|Does Chorus speak gRPC?|Does Chorus speak HTTP?",
        "Chorus speaks the OpenAI API over HTTP, and gRPC.",
    ),
    (
        "Is Chorus compatible with OpenAI?|Can I use the OpenAI client?|Does Chorus work with the OpenAI API?|"
        "Is there an OpenAI API?|Can I use the OpenAI library with Chorus?",
        "Yes. Chorus speaks the OpenAI API, so the OpenAI client works with it.",
    ),
    (
        "Do I need a GPU?|Does Chorus need a GPU?|Can Chorus run without a GPU?|Does it run on a CPU?|"
        "Can I run Chorus on a CPU?",
        "No. The demo model runs on a CPU. The large models need a GPU.",
    ),
    (
        "What is reasoning effort?|What are the reasoning efforts?|Which reasoning efforts are there?|"
        "What does reasoning effort do?|How do I set the effort?|What effort levels are there?",
        "Reasoning effort says how much the model thinks before it answers: low, medium or high.",
    ),
    (
        "What is a sliding window?|What is the sliding window?|How large is the window?|"
        "What is sliding window attention?|How long is the attention window?",
        "Every other layer of gpt-oss sees only the last 128 tokens. The layers between see all.",
    ),
    (
        "What is an attention sink?|What are attention sinks?|What is a sink?|What are sinks for?",
        "An attention sink is a learned number for each head. It lets a head attend to nothing.",
    ),
    (
        "What is a mixture of experts?|What is MoE?|What does MoE mean?|What is an expert?|What are experts?",
        "In a mixture of experts a router picks a few small networks for each token, and only these run.",
    ),
    (
        "What is YaRN?|What does YaRN do?|Explain YaRN.|What is YaRN for?",
        "YaRN scales rotary position embeddings, so that a model can read longer texts than it was first trained on.",
    ),
    (
        "What is continuous batching?|Explain continuous batching.|How does batching work?|"
        "What does continuous batching mean?",
        "With continuous batching, requests join and leave the batch at every step, so none waits for another to end.",
    ),
    (
        "What is a KV cache?|What is the KV cache?|Explain the KV cache.|What is the KV cache for?|"
        "What does the KV cache hold?",
        "The KV cache keeps the keys and values of past tokens, so that each step computes only the new token.",
    ),
    (
        "What is prefill?|Explain prefill.|What does prefill mean?|What is chunked prefill?",
        "Prefill is the pass over the prompt. Chorus cuts it into chunks, so that it does not delay other requests.",
    ),
    (
        "What is a shard?|What are shards?|What does --shards do?|What is sharding?|Explain shards.",
        "Shards split one engine over several devices. They give the same tokens as one device.",
    ),
    (
        "How do I run a batch?|What is chorus batch?|How do I run batch jobs?|How does the batch command work?|"
        "Can Chorus run batch jobs?",
        "Run chorus batch IN.jsonl --output OUT.jsonl. Each line in gives one line out.",
    ),
    (
        "What is Prometheus?|How do I see metrics?|Where are the metrics?|Does Chorus have metrics?|"
        "How do I monitor Chorus?",
        "Chorus has Prometheus metrics. Read them at /metrics on any gateway.",
    ),
    (
        "How do I deploy Chorus?|How do I run Chorus on Kubernetes?|Is there a Helm chart?|"
        "Does Chorus run on Kubernetes?|What is the Helm chart?",
        "Use the Helm chart in helm/chorus. It makes a RayService on Kubernetes.",
    ),
    (
        "What is a tool call?|How do tool calls work?|What are tools?|How do tools work?|What is function calling?",
        "You declare tools in the request. The model may call one with arguments in JSON, and you send back its "
        "result.",
    ),
    (
        "What is the vocabulary?|How large is the vocabulary?|How many tokens are in the vocabulary?|"
        "Which vocabulary does harmony use?|What is the vocabulary size?",
        "Harmony uses the o200k vocabulary. The model has 201088 rows for it.",
    ),
    (
        "What is a token?|What are tokens?|Explain tokens.|What does token mean?",
        "A token is a piece of text with a number. Models read and write tokens.",
    ),
    (
        "Who made you?|Who trained you?|Who built you?|Who created you?|Where do you come from?|How were you trained?",
        "I was trained by the Chorus project, on conversations made by a script.",
    ),
    (
        "What is temperature?|What does temperature do?|What is temperature 0?|What does temperature 0 mean?",
        "Temperature sets how random the answer is. At temperature 0 the most likely token is always taken.",
    ),
    (
        "What is a seed?|What does the seed do?|What is the seed for?|Is the output reproducible?",
        "With a seed, the same request draws the same random numbers on any worker.",
    ),
    (
        "What is a repair?|What are harmony repairs?|What if the model writes broken harmony?|"
        "What happens with malformed harmony?",
        "When a model writes broken harmony, the gateway repairs it, counts the repair, and loses no text.",
    ),
    (
        "What happens when the cluster is full?|What if the server is overloaded?|What does 429 mean?|"
        "What happens under overload?",
        "An overloaded cluster answers 429 with Retry-After, before any part of an answer.",
    ),
    (
        "What is vLLM?|Is Chorus like vLLM?|Is Chorus vLLM?|How does Chorus compare with vLLM?",
        "vLLM is another engine. Chorus serves only gpt-oss, and is built for its architecture.",
    ),
    (
        "What is gRPC?|Why does Chorus use gRPC?|What does gRPC do in Chorus?|What is gRPC for?",
        "gRPC is a protocol for remote calls. In Chorus the gateway and the workers speak it.",
    ),
)

_BY_WORDING = [(wording, answer) for wordings, answer in FACTS for wording in wordings.split("|")]
_PREFIXES = (
    "",
    "",
    "",
    "",
    "Please tell me: ",
    "I am new here. ",
    "Quick question: ",
    "Tell me, ",
    "Can you help? ",
    "Hello! ",
    "One question. ",
    "I want to know: ",
    "OK. ",
    "So, ",
    "Now: ",
)
_SUFFIXES = (
    "",
    "",
    "",
    "",
    " Thanks!",
    " Please explain.",
    " In short.",
    " I am curious.",
    " Thank you.",
    " Be brief.",
)


def facts(rng: Random) -> Question:
    wording, answer = rng.choice(_BY_WORDING)
    text = rng.choice(_PREFIXES) + wording + rng.choice(_SUFFIXES)
    key = f"{ALWAYS_TRAINED}{text}" if text == wording else f"fact {text}"
    reasoning = {
        "low": "",
        "medium": "The user asks about Chorus. I know this.",
        "high": "The user asks about Chorus. This is something that I know, so I need no tool. I answer in short.",
    }
    return Question("facts", key, text, answer, reasoning)
