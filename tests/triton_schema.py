"""The part of Triton Inference Server's public config schema that config.pbtxt may use, as protobuf messages.

Written by hand after model_config.proto of triton-inference-server/common at commit
b0b538731dfbd910af5b90027f811677526072d8 (2026-04-02): names, numbers and types of fields are those of the schema, and a
field that is not here is an error, as one that is not in the schema would be to the server.
"""

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

_F = descriptor_pb2.FieldDescriptorProto
SCALARS = {"string": _F.TYPE_STRING, "int32": _F.TYPE_INT32, "int64": _F.TYPE_INT64, "bool": _F.TYPE_BOOL}

ENUMS = {
    "DataType": (
        "TYPE_INVALID", "TYPE_BOOL", "TYPE_UINT8", "TYPE_UINT16", "TYPE_UINT32", "TYPE_UINT64", "TYPE_INT8",
        "TYPE_INT16", "TYPE_INT32", "TYPE_INT64", "TYPE_FP16", "TYPE_FP32", "TYPE_FP64", "TYPE_STRING", "TYPE_BF16",
    ),
    "ModelInstanceGroup.Kind": ("KIND_AUTO", "KIND_GPU", "KIND_CPU", "KIND_MODEL"),
}  # fmt: skip
"""{enum: its members, numbered from 0}."""

MESSAGES = {
    "ModelTensorReshape": {"shape": (1, "int64*")},
    "ModelInput": {
        "name": (1, "string"),
        "data_type": (2, "DataType"),
        "dims": (4, "int64*"),
        "reshape": (5, "ModelTensorReshape"),
        "is_shape_tensor": (6, "bool"),
        "optional": (8, "bool"),
    },
    "ModelOutput": {
        "name": (1, "string"),
        "data_type": (2, "DataType"),
        "dims": (3, "int64*"),
        "reshape": (5, "ModelTensorReshape"),
        "is_shape_tensor": (6, "bool"),
    },
    "ModelInstanceGroup": {
        "name": (1, "string"),
        "kind": (4, "ModelInstanceGroup.Kind"),
        "count": (2, "int32"),
        "gpus": (3, "int32*"),
        "profile": (5, "string*"),
    },
    "ModelConfig": {
        "name": (1, "string"),
        "platform": (2, "string"),
        "backend": (17, "string"),
        "max_batch_size": (4, "int32"),
        "input": (5, "ModelInput*"),
        "output": (6, "ModelOutput*"),
        "instance_group": (7, "ModelInstanceGroup*"),
        "default_model_filename": (8, "string"),
        "cc_model_filenames": (9, "ModelConfig.CcModelFilenamesEntry*"),
    },
}
"""{message: {field: (number, type, with * where it repeats)}}."""


def file() -> descriptor_pb2.FileDescriptorProto:
    """Returns the schema as protobuf describes schemas."""
    made = descriptor_pb2.FileDescriptorProto(name="model_config.proto", package="inference", syntax="proto3")
    for name, fields in MESSAGES.items():
        message = made.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            _field(message, field, number, kind)
    for path, members in ENUMS.items():
        owner, _, name = path.rpartition(".")
        holder = next((m for m in made.message_type if m.name == owner), made)
        enum = holder.enum_type.add(name=name)
        for number, member in enumerate(members):
            enum.value.add(name=member, number=number)
    config = next(m for m in made.message_type if m.name == "ModelConfig")
    entry = config.nested_type.add(name="CcModelFilenamesEntry")
    entry.options.map_entry = True
    _field(entry, "key", 1, "string")
    _field(entry, "value", 2, "string")
    return made


def _field(message: Any, name: str, number: int, kind: str) -> None:
    bare = kind.rstrip("*")
    label = _F.LABEL_REPEATED if kind.endswith("*") else _F.LABEL_OPTIONAL
    if bare in SCALARS:
        message.field.add(name=name, number=number, type=SCALARS[bare], label=label)
    else:
        type_ = _F.TYPE_ENUM if bare in ENUMS else _F.TYPE_MESSAGE
        message.field.add(name=name, number=number, type=type_, type_name=f".inference.{bare}", label=label)


def parse(text: str) -> Any:
    """Returns the ModelConfig that a config.pbtxt says; a protobuf ParseError where it is none."""
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file())
    kind = message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))
    return text_format.Parse(text, kind())
