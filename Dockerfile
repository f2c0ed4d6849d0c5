# An image with one static program in it and nothing else. Everything in one process:
#
#   docker build -t pizzaflow .
#   docker run --rm -p 8080:8080 -v pizza-data:/data pizzaflow
#
# deploy/compose.yaml runs each service on its own. The folder that the last stage copies can come from elsewhere:
# "docker buildx build --build-context build=FOLDER ." (and buildah) build no program, and need no other image.

FROM docker.io/library/golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG TARGETOS=linux TARGETARCH
RUN CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH go build -trimpath -ldflags='-s -w' -o /root.fs/usr/bin/pizza ./cmd/pizza \
 && mkdir -p /root.fs/data /root.fs/tmp /root.fs/etc/ssl/certs \
 && cp /etc/ssl/certs/ca-certificates.crt /root.fs/etc/ssl/certs/

FROM scratch
COPY --from=build /root.fs/usr /usr
COPY --from=build /root.fs/etc /etc
COPY --from=build --chown=65532:65532 /root.fs/data /data
COPY --from=build --chmod=1777 /root.fs/tmp /tmp
USER 65532:65532
# The container's own network is what loopback is to a machine: publish 8080, and keep 8081 for operators.
ENV HTTP_ADDR=:8080 ADMIN_ADDR=:8081 SANDBOX_ADDR=:8082 DATA_DIR=/data/pizza LOG_FORMAT=json
VOLUME /data
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=6s --start-period=30s CMD ["/usr/bin/pizza", "ready"]
ENTRYPOINT ["/usr/bin/pizza"]
