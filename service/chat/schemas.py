"""What `client.chat.completions.create` may ask for here."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

TOKENS_DEFAULT, TOKENS_MAX = 128, 512
CHARACTERS_MAX = 8000
MESSAGES_MAX = 20
Template = Literal["auto", "plain", "chat"]


class ChatMessage(BaseModel):
    """One turn. Text only: there are no tools and no pictures here."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "user", "assistant"]
    content: Annotated[str, StringConstraints(min_length=1, max_length=CHARACTERS_MAX)]


class ChatRequest(BaseModel):
    """The client's fields that a small playground can honour; others are refused by name.

    `template` is ours: `plain` continues the text as it stands, `chat` writes the turns as rows of
    `messages` were trained, and `auto` is plain for one message of the user.
    """

    model_config = ConfigDict(extra="forbid")

    model: Annotated[str, StringConstraints(min_length=1, max_length=400)]
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MESSAGES_MAX)]
    max_tokens: Annotated[int, Field(ge=1, le=TOKENS_MAX)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=TOKENS_MAX)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] = 0.7
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 0.95
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    n: Literal[1] = 1
    stream: bool = False
    template: Template = "auto"

    @property
    def tokens_max(self) -> int:
        return self.max_completion_tokens or self.max_tokens or TOKENS_DEFAULT

    def prompt(self) -> str:
        """The text that the model continues, in the form that its rows had."""
        is_plain = self.template == "plain"
        if self.template == "auto":
            is_plain = len(self.messages) == 1 and self.messages[0].role == "user"
        if is_plain:
            return "\n".join(message.content for message in self.messages)
        turns = [f"{message.role.capitalize()}: {message.content}" for message in self.messages]
        return "\n".join([*turns, "Assistant:"])
