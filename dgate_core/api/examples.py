"""Examples that work when pasted; {base} is where the reader reached the server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Example:
    """One thing to try."""

    title: str
    language: Literal["bash", "python"]
    text: str


EXAMPLES = (
    Example(
        "A picture as a file",
        "bash",
        """\
curl -s {base}/v1/images/generations -H 'content-type: application/json' -H "authorization: Bearer $OPENAI_API_KEY" \\
  -d '{"prompt": "a red circle on a beach", "seed": 7}' \\
  | python3 -c 'import base64, json, sys
data = json.load(sys.stdin)["data"][0]
open("picture.png", "wb").write(base64.b64decode(data["b64_json"]))
print("picture.png, seed", data["seed"])'""",
    ),
    Example(
        "A picture behind a url, with parameters",
        "bash",
        """\
curl -s {base}/v1/images/generations -H 'content-type: application/json' -H "authorization: Bearer $OPENAI_API_KEY" \\
  -d '{"prompt": "two blue squares", "negative_prompt": "fog", "n": 2, "size": "auto", "num_inference_steps": 12,
       "guidance_scale": 2, "seed": 7, "scheduler": "default", "output_format": "jpeg", "response_format": "url"}'""",
    ),
    Example(
        "Progress and previews",
        "bash",
        """\
curl -sN {base}/v1/images/generations -H 'content-type: application/json' -H "authorization: Bearer $OPENAI_API_KEY" \\
  -d '{"prompt": "a green triangle at night", "stream": true, "partial_images": 2}' | cut -c 1-120""",
    ),
    Example(
        "With OpenAI's SDK",
        "python",
        """\
import base64, os
from openai import OpenAI

client = OpenAI(base_url="{base}/v1", api_key=os.environ.get("OPENAI_API_KEY") or "none")
answer = client.images.generate(prompt="a red circle on a beach", n=2, extra_body={"seed": 7})
for image in answer.data:
    with open(f"picture-{image.seed}.png", "wb") as file:
        file.write(base64.b64decode(image.b64_json))
    print(image.seed, image.id)""",
    ),
    Example(
        "A batch, with OpenAI's SDK",
        "python",
        """\
import json, os, time
from openai import OpenAI

client = OpenAI(base_url="{base}/v1", api_key=os.environ.get("OPENAI_API_KEY") or "none")
url = "/v1/images/generations"
with open("requests.jsonl", "w") as file:
    for number, colour in enumerate(["red", "green", "blue"]):
        body = {"prompt": f"a {colour} circle", "seed": number, "response_format": "b64_json"}
        file.write(json.dumps({"custom_id": colour, "method": "POST", "url": url, "body": body}) + "\\n")
with open("requests.jsonl", "rb") as file:
    upload = client.files.create(file=file, purpose="batch")
batch = client.batches.create(input_file_id=upload.id, endpoint=url, completion_window="24h")
while batch.status in {"validating", "in_progress", "finalizing"}:
    time.sleep(1)
    batch = client.batches.retrieve(batch.id)
print(batch.status, batch.request_counts)
for line in client.files.content(batch.output_file_id).text.splitlines():
    print(json.loads(line)["custom_id"])""",
    ),
    Example(
        "What is served",
        "bash",
        """\
curl -s {base}/v1/models -H "authorization: Bearer $OPENAI_API_KEY\"""",
    ),
)


def fill_example(example: Example, base: str) -> str:
    """The text for a server's address."""
    return example.text.replace("{base}", base)
